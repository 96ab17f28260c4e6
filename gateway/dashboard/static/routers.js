// What strategies gave for their money, and whether they still do what they did.
import { get, poll } from "./api.js";
import { meter, scatter } from "./charts.js";
import { badge, card, choice, empty, h, replace, table } from "./dom.js";
import { count, figure, percent, span, usd, when } from "./format.js";
import { processes } from "./overview.js";

const RANGES = [60, 1440, 7 * 1440, 30 * 1440];
const VERDICTS = { steady: "good", shifted: "bad", "too few": "" };

export function routers({ root, tools, signal, failed }) {
  let minutes = 1440;
  let source = "estimated";
  let drawn = "";
  const frontiers = h("div", { class: "stack" });
  const drifting = h("div", { class: "stack" });
  const health = h("div");
  tools.append(choice("Time", RANGES.map((value) => [value, span(value)]), minutes, (value) => { minutes = value; draw(); }));
  const sources = choice("Source", [["estimated", "Live, as estimated"], ["measured", "In training, as measured"]], source, (value) => { source = value; draw(); });
  replace(root, card("Quality and cost", h("div", { class: "card-head" }, h("p", { class: "muted" }, "Up is better, left is cheaper. The line joins what nothing else beats."), sources), frontiers),
    card("Drift", h("p", { class: "muted" }, "The newer half of the latest decisions against the older half: how far the shares of the chosen models have moved, beside what chance alone explains."), drifting),
    card("Health", health));

  async function draw() {
    const [told, decided] = await Promise.all([get(`/admin/frontier?minutes=${minutes}`, signal), get(`/admin/routers?minutes=${minutes}`, signal)]);
    const now = JSON.stringify([source, told]);
    if (now !== drawn) {
      drawn = now;
      replace(frontiers, told[source].length ? told[source].map((one) => frontier(one, source))
        : source === "estimated" ? empty("No routed request yet", `No strategy that estimates quality answered in the last ${span(minutes)}.`)
          : empty("Nothing was measured", "Artefacts made by `chorus train` and `chorus calibrate` keep what they measured; this config names none."));
    }
    replace(drifting, decided.data.length ? decided.data.map(drift) : empty("No decision yet", `No strategy decided anything in the last ${span(minutes)}.`));
    replace(health, processes(decided));
  }

  poll(5000, signal, draw, failed);
}

function frontier(one, source) {
  return h("figure", { "data-strategy": one.strategy },
    h("figcaption", null, h("h3", null, one.strategy), h("span", { class: "muted" }, source === "estimated"
      ? `means of ${count(Math.max(...one.points.map((point) => point.count)))} requests, quality as the router estimated it`
      : `${count(one.points[0].count)} held-out queries, 95 % intervals`)),
    scatter(`Quality against cost of ${one.strategy}; the table below says the same`, one.points, one.frontier, { write: usd }),
    h("details", null, h("summary", null, "As a table"), table(`Quality and cost of ${one.strategy}`, [["Name", ""], ["Quality", "num"], ["US dollars a request", "num"], ["Unbeaten", ""]],
      one.points.map((point, i) => [point.name, figure(`quality:${one.strategy}:${point.name}`, point.quality, point.quality.toFixed(3)),
        figure(`cost:${one.strategy}:${point.name}`, point.cost_usd, usd(point.cost_usd)), one.frontier.includes(i) ? badge("yes", "good") : ""]))));
}

function drift(one) {
  const quality = one.quality.newer === null || one.quality.older === null ? ""
    : ` Estimated quality ${one.quality.older.toFixed(3)} → ${one.quality.newer.toFixed(3)}.`;
  return h("article", { class: "drift", "data-strategy": one.strategy },
    h("header", null, h("h3", null, one.strategy), badge(one.verdict, VERDICTS[one.verdict]),
      h("span", { class: "muted" }, figure(`decisions:${one.strategy}`, one.count, count(one.count)), " decisions since ", when(one.since))),
    h("p", { class: "small" }, `Moved by ${percent(one.distance)}; chance explains ${percent(Math.min(1, one.chance))}.${one.defaulted ? ` ${percent(one.defaulted)} could not be estimated and took the default.` : ""}${quality}`),
    table(`Who was chosen by ${one.strategy}`, [["Chosen", ""], ["Older half", "share"], ["Newer half", "share"]], one.chosen.map((row) => [row.name,
      h("span", { class: "shared" }, meter(row.older, "pale"), h("span", null, percent(row.older))),
      h("span", { class: "shared" }, meter(row.newer), figure(`newer:${one.strategy}:${row.name}`, row.newer, percent(row.newer)))])));
}
