// One request: what was decided and why, and its call tree in time.
import { get } from "./api.js";
import { meter, stretch } from "./charts.js";
import { badge, card, empty, h, replace, say, table } from "./dom.js";
import { count, figure, seconds, usd, when } from "./format.js";
import { outcome } from "./requests.js";

const fact = (name, value) => (value === null || value === undefined || value === "" ? null : h("div", null, h("dt", null, name), h("dd", null, value)));

export async function request({ root, tools, argument, signal, failed }) {
  tools.append(h("a", { class: "button", href: "#/requests" }, "← All requests"));
  let told;
  try {
    told = await get(`/admin/requests/${encodeURIComponent(argument)}`, signal);
  } catch (error) {
    failed(error);
    replace(root, card("Not found", empty("The ledger has no such request", "It is written a moment after the answer, and kept for ledger.retention_days.")));
    return;
  }
  const tree = asked(told);
  replace(root,
    card("Summary", h("dl", { class: "facts" },
      fact("Outcome", outcome(told.outcome)), fact("Asked for", told.requested), fact("Strategy", told.strategy),
      fact("Cost", figure("cost_usd", told.cost_usd, usd(told.cost_usd))), fact("Took", figure("latency_s", told.latency_s, seconds(told.latency_s))),
      fact("Tokens", `${count(told.prompt_tokens)} in, ${count(told.completion_tokens)} out`),
      fact("When", when(told.at)), fact("Key", told.alias ?? told.key), fact("Team", told.team), fact("Owner", told.owner),
      fact("Tags", told.tags.join(", ")), fact("Path", h("code", null, `/v1${told.path}`)), fact("Request id", h("code", null, told.request_id)))),
    card("Calls", told.calls.length ? waterfall(told, tree) : empty("Nobody was asked", "It was refused, answered from a cache, or left before a model was called.")),
    card("Decision", Object.keys(told.decision).length ? decision(told.decision)
      : empty("Nothing to decide", "A model was asked for by its name.")),
    told.text ? card("Prompt and answer", said(told.id, signal)) : null);
}

// What was said is fetched when somebody wants to read it, which the audit log then says.
function said(id, signal) {
  const place = h("div", { class: "stack" });
  const show = h("button", {
    type: "button", onclick: async () => {
      try {
        const text = await get(`/admin/requests/${encodeURIComponent(id)}/text`, signal);
        replace(place, part("Prompt", text.prompt), part("Answer", text.answer ?? "none in words"),
          text.cut ? h("p", { class: "muted" }, "Not all of it: ledger.max_text_kib bounds what is stored.") : null);
      } catch (error) { say(error.message, "bad"); }
    },
  }, "Show them");
  replace(place, h("p", { class: "muted" }, "The key has them stored. That they are read stands in the audit log."), show);
  return place;
}

const part = (title, text) => h("div", null, h("h3", null, title), h("pre", { class: "said", tabindex: "0", "aria-label": title, role: "region" }, pretty(text)));

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

// The calls in the order of their beginning, under the strategy that asked for each.
function asked(told) {
  const names = [["", 0]];
  const visit = (facts, depth) => (facts.nested ?? []).forEach((inner) => {
    if (!names.some(([name]) => name === inner.strategy)) names.push([inner.strategy, depth]);
    visit(inner, depth + 1);
  });
  visit(told.decision, 1);
  for (const call of told.calls) if (!names.some(([name]) => name === (call.asker ?? ""))) names.push([call.asker, 1]);
  return names.map(([name, depth]) => ({
    name: name || told.strategy, depth,
    calls: told.calls.filter((call) => (call.asker ?? "") === name).sort((a, b) => (a.began_s ?? 0) - (b.began_s ?? 0)),
  }));
}

function waterfall(told, tree) {
  const whole = Math.max(told.latency_s, ...told.calls.map((call) => (call.began_s ?? 0) + call.latency_s));
  const known = told.calls.every((call) => call.began_s !== null);
  const rows = tree.flatMap((strategy) => {
    const own = strategy.calls.reduce((sum, call) => sum + call.cost_usd, 0);
    const head = told.strategy === "direct" ? [] : [h("li", { class: `asker depth-${Math.min(3, strategy.depth)}` },
      h("span", { class: "who" }, h("strong", null, strategy.name), h("span", { class: "muted" }, " strategy")),
      h("span", { class: "bar" }), h("span", { class: "num" }, ""), h("span", { class: "num" }, strategy.calls.length ? usd(own) : ""))];
    return [...head, ...strategy.calls.map((call) => row(call, whole, strategy.depth + (told.strategy === "direct" ? 0 : 1)))];
  });
  return [h("ol", { class: "waterfall" },
    h("li", { class: "head", "aria-hidden": "true" }, h("span", null, "Who was asked"), h("span", { class: "bar scale" }, h("span", null, "0"), h("span", null, seconds(whole))), h("span", { class: "num" }, "Took"), h("span", { class: "num" }, "Cost")),
    rows),
  known ? null : h("p", { class: "muted" }, "An older ledger row: when its calls began was not kept, so they are drawn from 0.")];
}

function row(call, whole, depth) {
  const began = call.began_s ?? 0;
  const kind = call.kind === "embedding" ? "embedding" : call.outcome === "ok" ? "good" : "failed";
  const notes = [
    call.kind === "embedding" ? badge("embedding") : null,
    call.outcome === "ok" ? null : outcome(call.outcome),
    call.attempts > 1 ? badge(`${call.attempts} attempts`, "warn") : null,
    call.estimated ? badge("usage estimated", "warn") : null,
  ];
  return h("li", { class: `call depth-${Math.min(3, depth)}`, "data-call": call.number },
    h("span", { class: "who" }, h("span", null, call.model), notes,
      h("span", { class: "muted small" }, `${count(call.prompt_tokens)} in, ${count(call.completion_tokens)} out, from ${seconds(began)}`)),
    h("span", { class: "bar" }, stretch(began, began + call.latency_s, whole, kind)),
    h("span", { class: "num" }, figure(`latency:${call.number}`, call.latency_s, seconds(call.latency_s))),
    h("span", { class: "num" }, figure(`cost:${call.number}`, call.cost_usd, usd(call.cost_usd))));
}

function decision(facts) {
  const chosen = typeof facts.chosen === "number" ? facts.samples?.[facts.chosen]?.model : facts.accepted ?? facts.chosen;
  const parts = [h("dl", { class: "facts" },
    fact("Method", facts.method), fact("Router", facts.router && h("code", null, facts.router)), fact("Chosen", chosen),
    fact("Why", facts.reason), fact("Quality knob", facts.quality), fact("Cache", facts.cache), fact("Similarity", facts.similarity),
    fact("Drawn with probability", facts.propensity === 1 ? null : facts.propensity))];
  if (facts.estimates) {
    const rows = Object.entries(facts.estimates).sort(([, a], [, b]) => (b.quality ?? 0) - (a.quality ?? 0));
    parts.push(table("Estimates of the router", [["Candidate", ""], ["Quality", "share"], ["Cost", "num"]], rows.map(([name, told]) => [
      h("span", null, name, " ", name === facts.chosen ? badge("chosen", "good") : null),
      told.quality === null || told.quality === undefined ? "–" : h("span", { class: "shared" }, meter(told.quality), h("span", null, told.quality.toFixed(3))),
      told.cost_usd === null || told.cost_usd === undefined ? "–" : usd(told.cost_usd)])));
  }
  if (facts.stages) {
    parts.push(table("Stages of the cascade", [["Stage", ""], ["Score", "num"], ["Threshold", "num"], ["Verdict", ""]], facts.stages.map((stage) => [
      stage.model, number(stage.score), number(stage.threshold), badge(stage.verdict ?? stage.error, stage.verdict === "accepted" ? "good" : "warn")])));
  }
  if (facts.samples) {
    parts.push(table("Answers that were compared", [["Answer", ""], ["Score", "num"]], facts.samples.map((sample, i) => [
      h("span", null, sample.model, " ", i === facts.chosen ? badge("chosen", "good") : null), number(sample.score)])));
  }
  for (const inner of facts.nested ?? []) parts.push(h("div", { class: "nested" }, h("h3", null, `Decision of ${inner.strategy}, which it asked`), decision(inner)));
  return parts;
}

const number = (value) => (typeof value === "number" ? value.toFixed(3) : "–");
