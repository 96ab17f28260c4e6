import { get, poll, query } from "./api.js";
import { bars, meter } from "./charts.js";
import { card, choice, empty, field, h, replace, table } from "./dom.js";
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
  const saved = savings(() => ({ minutes, by }), signal, failed);
  tools.append(choice("Time", RANGES.map((value) => [value, span(value)]), minutes, (value) => { minutes = value; draw(); saved.draw(); }));
  const tabs = choice("By", Object.entries(GROUPS), by, (value) => { by = value; draw(); saved.draw(); });
  replace(root, card("Over time", h("div", { class: "card-head" }, total, tabs), chart), card("Who spent it", groups), saved.card);

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

// What always asking one model would have cost. It is asked for only once a model is chosen: it reads more than the rest.
function savings(stretch, signal, failed) {
  const place = h("div");
  const model = h("select", { onchange: () => draw() }, h("option", { value: "" }, "choose a model"));
  get("/admin/names", signal).then((names) => model.append(...names.priced.map((name) => h("option", { value: name }, name))), failed);
  poll(60000, signal, draw, failed);

  async function draw() {
    const against = model.value;
    if (!against) {
      replace(place, h("p", { class: "muted" }, "What would always asking one model have cost? Choose one that has a price."));
      return;
    }
    const { minutes, by } = stretch();
    let told;
    try {
      told = await get(`/admin/savings?${query({ against, by, minutes })}`, signal);
    } catch (error) {
      if (!signal.aborted) replace(place, h("p", { class: "notice bad", role: "alert" }, error.message));
      return;
    }
    const now = stretch();
    if (against !== model.value || by !== now.by || minutes !== now.minutes) return;
    replace(place, told.usd === null ? empty("Not enough answers", told.told) : estimate(told));
  }

  return { card: card("Saved against always asking one model", h("div", { class: "filters" }, field("Against", model)), place), draw };
}

const SAVED = [["Requests", "num"], ["Of them its own", "num"], ["Spent", "num"], ["Would have cost", "num"], ["Saved", "num"], ["95 % from", "num"], ["to", "num"]];

function estimate(told) {
  const money = (name, value) => figure(name, value, usd(value));
  const whole = (name, value) => figure(name, value, count(value));
  const cells = (one, name) => [
    whole(`saved_requests:${name}`, one.requests), whole(`saved_measured:${name}`, one.measured), money(`saved_spent:${name}`, one.spent_usd),
    money(`saved_against:${name}`, one.against_usd), money(`saved:${name}`, one.usd), money(`saved_low:${name}`, one.low_usd), money(`saved_high:${name}`, one.high_usd)];
  return [
    h("p", { class: "total" }, money("saved_usd", told.usd), h("span", { class: "muted" }, " saved, as estimated")),
    h("p", { class: "muted reasons" }, "With 95 % confidence ", money("saved_low_usd", told.low_usd), " to ", money("saved_high_usd", told.high_usd), `. ${count(told.requests)} requests cost ${usd(told.spent_usd)}; `, h("b", null, told.model), " would have cost about ", money("saved_against_usd", told.against_usd),
      ", as ", whole("saved_answers", told.answers), ` measured answers of it predict. It answered ${count(told.measured)} of them itself; ${count(told.left_out)} without measured tokens are left out. `,
      "An estimate: tokenizers differ, and it may have been asked the harder questions."),
    table(`Saved by ${told.by} against ${told.model}`, [[GROUPS[told.by], ""], ...SAVED], told.groups.map((one) => [one.group[0], ...cells(one, one.group[0])])),
    told.left_out_groups ? h("p", { class: "muted" }, `${count(told.left_out_groups)} more groups are in the total.`) : null];
}

const share = (part) => h("span", { class: "shared" }, meter(part), h("span", null, percent(part)));
