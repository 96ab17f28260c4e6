import { get, poll } from "./api.js";
import { badge, card, choice, empty, h, replace } from "./dom.js";
import { bars } from "./charts.js";
import { count, figure, percent, seconds, span, tick, usd } from "./format.js";
import { requestTable } from "./requests.js";

const RANGES = [15, 60, 360, 1440];

const stat = (name, value, note) =>
  h("div", { class: "stat" }, h("dt", null, name), h("dd", null, value), note && h("dd", { class: "note" }, note));

export function overview({ root, tools, signal, failed }) {
  let minutes = RANGES[0];
  const stats = h("dl", { class: "stats" });
  const traffic = h("div");
  const money = h("div");
  const health = h("div");
  const latest = h("div");
  tools.append(choice("Time", RANGES.map((value) => [value, span(value)]), minutes, (value) => { minutes = value; draw(); }));
  replace(root, stats, h("div", { class: "pair" }, card("Requests", traffic), card("Spend", money)),
    h("div", { class: "wide-pair" }, card("Latest requests", latest), card("Processes", health)));

  async function draw() {
    const [told, list] = await Promise.all([get(`/admin/live?minutes=${minutes}`, signal), get("/admin/requests?limit=8", signal)]);
    const rate = told.count / (minutes * 60);
    replace(stats,
      stat("Requests", figure("requests", told.count, count(told.count)), rate < 0.5 ? `${(rate * 60).toFixed(1)} a minute` : `${rate >= 10 ? count(rate) : rate.toFixed(1)} a second`),
      stat("In flight", figure("in_flight", told.in_flight, count(told.in_flight)), "at this moment"),
      stat("Failed", figure("failed", told.failed, count(told.failed)), told.count ? percent(told.failed / told.count) : "of none"),
      stat("Took, median", figure("p50", told.latency_s.p50, seconds(told.latency_s.p50)), "from arrival to the last word"),
      stat("Took, 95 %", figure("p95", told.latency_s.p95, seconds(told.latency_s.p95)), `99 %: ${seconds(told.latency_s.p99)}`),
      stat("Spent", figure("cost_usd", told.cost_usd, usd(told.cost_usd)), `${count(told.prompt_tokens)} tokens in, ${count(told.completion_tokens)} out`));
    const whole = told.bucket_s * told.series.count.length;
    const ticks = (i) => tick(told.since + i * told.bucket_s, whole);
    if (told.count) {
      const good = told.series.count.map((value, i) => value - told.series.failed[i]);
      replace(traffic, bars(`Requests of the last ${span(minutes)}: ${told.count}, ${told.failed} of them failed`,
        [{ name: "answered", kind: "c0", values: good }, { name: "failed", kind: "bad", values: told.series.failed }], { ticks, write: count }));
      replace(money, bars(`Spend of the last ${span(minutes)}: ${usd(told.cost_usd)}`, [{ name: "spent", kind: "c1", values: told.series.cost_usd }], { ticks, write: usd }));
    } else {
      const text = told.ledger ? "Requests appear here a moment after they are answered." : "The ledger is switched off (ledger.enabled).";
      replace(traffic, empty(`No request in the last ${span(minutes)}`, text));
      replace(money, empty("Nothing spent", "What requests cost is added up here."));
    }
    replace(health, processes(told));
    replace(latest, list.data.length ? requestTable(list.data) : empty("No requests yet", "Send one to the gateway, or try the playground.", h("a", { href: "#/playground" }, "Open the playground")));
  }

  poll(2000, signal, draw, failed);
}

export function processes(told) {
  const rows = Object.entries(told.status.components ?? {}).map(([name, child]) =>
    h("li", null, h("span", { class: "name" }, name), child.restarts ? h("span", { class: "muted" }, `${child.restarts} restarts`) : null,
      badge(child.state, child.state === "ready" ? "good" : "bad")));
  const faults = told.degraded.map((name) => h("li", null, h("span", { class: "name" }, name), badge("degraded", "warn")));
  const alone = told.left_alone.map((one) => h("li", null, h("span", { class: "name" }, `${one.model}, deployment ${one.deployment}`), badge("left alone", "bad")));
  const config = told.status.config;
  return [h("ul", { class: "rows" }, rows, faults, alone),
    rows.length + faults.length + alone.length === 0 ? empty("No process is known", "The supervisor reports here.") : null,
    config?.digest && h("p", { class: "muted small" }, "Config ", h("code", null, String(config.digest).slice(0, 12)))];
}
