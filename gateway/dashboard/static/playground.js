// Strategies side by side, as they stream. The key that answers is the one given here; it is sent to this port alone, and
// forgotten with the page.
import { get, post, send } from "./api.js";
import { badge, card, empty, field, h, replace } from "./dom.js";
import { count, figure, seconds, usd } from "./format.js";
import { events } from "./sse.js";

const MOST = 6;

export function playground({ root, signal, failed }) {
  let running = null;
  const key = h("input", { type: "password", autocomplete: "off", spellcheck: "false", placeholder: "sk-…", onchange: () => names() });
  const prompt = h("textarea", { rows: "4", required: true, placeholder: "Ask something" });
  const tokens = h("input", { type: "number", min: "1", max: "32768", value: "256" });
  const boxes = h("div", { class: "checks" });
  const said = h("p", { class: "notice bad", role: "alert", hidden: true });
  const answers = h("div", { class: "answers" }, empty("No answers yet", `Choose up to ${MOST} strategies or models, and compare what they say, how long they take and what they cost.`));
  const run = h("button", { type: "submit", class: "primary" }, "Ask them");
  const stop = h("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const form = h("form", { class: "stack", onsubmit: (event) => { event.preventDefault(); ask(); } },
    h("div", { class: "form-grid two" }, field("Key", key, "Whose limits and budget this uses; empty where none is required."), field("Longest answer (tokens)", tokens)),
    h("fieldset", null, h("legend", null, "Who is asked"), boxes), field("Prompt", prompt), said, h("div", { class: "actions start" }, run, stop));
  replace(root, card("Ask", form), h("section", { "aria-label": "Answers" }, answers));
  signal.addEventListener("abort", () => running?.abort());
  const chosen = () => [...boxes.querySelectorAll("input:checked")].map((box) => box.value);
  names();

  async function names() {
    const marked = new Set(chosen());
    try {
      const known = await get("/admin/names", signal);
      if (known.keys_required && !key.value.trim()) {
        complain("");
        replace(boxes, h("p", { class: "muted" }, "Give a key to see what it may ask."));
        return;
      }
      const told = await post("/admin/playground/models", { key: key.value.trim() }, signal);
      const list = [...known.strategies, ...known.models].filter((name) => told.data.some((model) => model.id === name));
      replace(boxes, list.map((name, i) => {
        const box = h("input", { type: "checkbox", value: name, id: `ask-${i}` });
        box.checked = marked.has(name);
        return h("label", { class: "check", for: box.id }, box, name);
      }));
      complain(list.length ? "" : "This key may name nothing.");
    } catch (error) {
      if (signal.aborted) return;
      replace(boxes, h("p", { class: "muted" }, "This key may ask nobody."));
      complain(error.message);
    }
  }

  function complain(text) {
    said.hidden = !text;
    said.textContent = text;
  }

  async function ask() {
    const list = chosen();
    if (!list.length || list.length > MOST) return complain(`Mark from one to ${MOST} of those who are asked.`);
    complain("");
    running = new AbortController();
    run.disabled = true;
    stop.disabled = false;
    const columns = list.map((name) => column(name));
    replace(answers, columns.map((one) => one.element));
    const body = { messages: [{ role: "user", content: prompt.value }], max_tokens: Number(tokens.value) || 256 };
    await Promise.all(columns.map((one) => one.ask({ key: key.value.trim(), request: { ...body, model: one.name, chorus: { explain: true } } }, running.signal)));
    run.disabled = false;
    stop.disabled = true;
    failed(null);
  }
}

function column(name) {
  const text = h("p", { class: "answer-text" });
  const state = badge("asking", "warn");
  const facts = h("dl", { class: "facts small" });
  const link = h("p", { class: "small" });
  const element = h("article", { class: "answer", "data-answer": name, "aria-busy": "true" }, h("header", null, h("h2", null, name), state), text, facts, link);
  const fact = (label, value) => h("div", null, h("dt", null, label), h("dd", null, value));

  async function ask(body, signal) {
    const began = performance.now();
    const passed = () => (performance.now() - began) / 1000;
    let first = null;
    let told = {};
    let usage = null;
    try {
      const response = await send("POST", "/admin/playground/chat", body, signal);
      const id = response.headers.get("x-request-id");
      for await (const data of events(response)) {
        if (data === "[DONE]") { told.done = true; continue; }
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);
        const piece = event.choices?.[0]?.delta?.content;
        if (piece) { first ??= passed(); text.append(piece); }
        usage = event.usage ?? usage;
        if (event.chorus) told = { ...told, ...event.chorus };
      }
      if (!told.done) throw new Error("The answer was cut off.");
      mark("done", "good");
      if (id) replace(link, h("a", { href: `#/requests/${encodeURIComponent(id)}` }, "Its call tree"));
    } catch (error) {
      const left = error.name === "AbortError";
      mark(left ? "stopped" : "failed", left ? "" : "bad");
      if (!left) text.append(h("span", { class: "bad-text" }, `${text.textContent ? " — " : ""}${error.message}`));
    }
    replace(facts, fact("First word", seconds(first)), fact("All", seconds(passed())),
      told.cost_usd === undefined ? null : fact("Cost", figure("cost_usd", told.cost_usd, usd(told.cost_usd))),
      usage && fact("Tokens", `${count(usage.prompt_tokens)} in, ${count(usage.completion_tokens)} out`),
      told.model && fact("Answered by", told.model), told.decision?.reason && fact("Why", told.decision.reason),
      told.calls && fact("Calls", count(told.calls.length)));
    element.setAttribute("aria-busy", "false");
  }

  function mark(word, kind) {
    state.textContent = word;
    state.className = `badge ${kind}`;
  }
  return { name, element, ask };
}
