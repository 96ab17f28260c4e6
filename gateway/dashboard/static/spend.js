import { get, poll } from "./api.js";
import { bars, meter } from "./charts.js";
import { card, choice, empty, h, replace, table } from "./dom.js";
import { count, figure, percent, span, tick, usd } from "./format.js";

const RANGES = [60, 1440, 7 * 1440, 30 * 1440, 90 * 1440];
const GROUPS = { key: "Key", team: "Team", model: "Model", strategy: "Strategy" };
const SHOWN = 6;

export function spend({ root, tools, signal, failed }) {
  let minutes = 1440;
  let by = "key";
  const total = h("p", { class: "total" });
  const chart = h("div");
  const groups = h("div");
  tools.append(choice("Time", RANGES.map((value) => [value, span(value)]), minutes, (value) => { minutes = value; draw(); }));
  const tabs = choice("By", Object.entries(GROUPS), by, (value) => { by = value; draw(); });
  replace(root, card("Over time", h("div", { class: "card-head" }, total, tabs), chart), card("Who spent it", groups));

  async function draw() {
    const asked = by;
    const told = await get(`/admin/timeline?minutes=${minutes}&by=${by}`, signal);
    if (asked !== by) return;
    replace(total, figure("total_usd", told.total.cost_usd, usd(told.total.cost_usd)), h("span", { class: "muted" }, ` in ${span(minutes)}`));
    if (!told.data.length) {
      replace(chart, empty("Nothing spent", `There was no request in the last ${span(minutes)}.`));
      replace(groups, empty("Nobody asked", "Each key, team, model and strategy that is used gets a line here."));
      return;
    }
    const whole = told.bucket_s * told.data[0].series.cost_usd.length;
    const layers = told.data.slice(0, SHOWN).map((one, i) => ({ name: one.name, kind: `c${i}`, values: one.series.cost_usd }));
    const rest = told.data.slice(SHOWN);
    if (rest.length) layers.push({ name: "others", kind: "others", values: layers[0].values.map((_, i) => rest.reduce((sum, one) => sum + one.series.cost_usd[i], 0)) });
    replace(chart, bars(`Spend by ${by} in the last ${span(minutes)}; the table below says the same`, layers,
      { ticks: (i) => tick(told.since + i * told.bucket_s, whole), write: usd }));
    replace(groups, table(`Spend by ${by}`,
      [[GROUPS[by], ""], ["Spent", "num"], ["Share", "share"], [told.counts === "calls" ? "Calls" : "Requests", "num"], ["Failed", "num"], ["Tokens in", "num"], ["Tokens out", "num"]],
      told.data.map((one, i) => [
        h("span", { class: "swatch-name" }, h("span", { class: `swatch ${i < SHOWN ? `c${i}` : "others"}`, "aria-hidden": "true" }), one.name),
        figure(`cost:${one.name}`, one.cost_usd, usd(one.cost_usd)),
        share(told.total.cost_usd ? one.cost_usd / told.total.cost_usd : 0),
        figure(`count:${one.name}`, one.count, count(one.count)),
        figure(`failed:${one.name}`, one.failed, count(one.failed)),
        figure(`prompt_tokens:${one.name}`, one.prompt_tokens, count(one.prompt_tokens)),
        figure(`completion_tokens:${one.name}`, one.completion_tokens, count(one.completion_tokens)),
      ])),
      told.left_out.groups ? h("p", { class: "muted" }, `${count(told.left_out.groups)} more spent ${usd(told.left_out.cost_usd)}.`) : null);
  }

  poll(5000, signal, draw, failed);
}

const share = (part) => h("span", { class: "shared" }, meter(part), h("span", null, percent(part)));
