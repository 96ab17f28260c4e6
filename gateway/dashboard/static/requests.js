import { get, poll, query } from "./api.js";
import { badge, card, empty, field, h, replace, say, table } from "./dom.js";
import { count, seconds, usd, when } from "./format.js";

export const outcome = (name) => badge(name, name === "ok" ? "good" : name === "cancelled" ? "" : "bad");

export function requestTable(rows) {
  return table("Requests, latest first",
    [["When", ""], ["Asked for", ""], ["Strategy", "wide"], ["Key", "wide"], ["Outcome", ""], ["Took", "num wide"], ["Tokens", "num wide"], ["Cost", "num"]],
    rows.map((row) => [
      h("a", { href: `#/requests/${encodeURIComponent(row.id)}`, "data-request": row.id, "aria-label": `Request of ${row.requested}` }, when(row.at)),
      row.requested, row.strategy, row.alias ?? row.key, outcome(row.outcome), seconds(row.latency_s),
      count(row.prompt_tokens + row.completion_tokens), h("data", { value: row.cost_usd }, usd(row.cost_usd))]));
}

export function requests({ root, tools, signal, failed }) {
  const filters = { outcome: "", strategy: "", key: "" };
  let pages = [null];
  const place = h("div");
  const changed = () => { pages = [null]; draw().catch(failed); };
  const outcomes = h("select", { onchange: () => { filters.outcome = outcomes.value; changed(); } },
    [["", "all"], ["ok", "answered"], ["failed", "failed"]].map(([value, text]) => h("option", { value }, text)));
  const strategies = h("select", { onchange: () => { filters.strategy = strategies.value; changed(); } }, h("option", { value: "" }, "all"), h("option", { value: "direct" }, "direct"));
  const key = h("input", { type: "search", placeholder: "alias or id", onchange: () => { filters.key = key.value.trim(); changed(); } });
  const id = h("input", { type: "search", placeholder: "x-request-id", spellcheck: "false" });
  const open = h("form", {
    class: "inline", onsubmit: async (event) => {
      event.preventDefault();
      if (!id.value.trim()) return;
      try {
        const told = await get(`/admin/requests/${encodeURIComponent(id.value.trim())}`, signal);
        location.hash = `#/requests/${encodeURIComponent(told.id)}`;
      } catch (error) { say(error.message, "bad"); }
    },
  }, field("Open by id", id), h("button", { type: "submit" }, "Open"));
  const newer = h("button", { type: "button", onclick: () => { pages.pop(); draw().catch(failed); } }, "← Newer");
  const older = h("button", { type: "button", onclick: () => { pages.push(older.dataset.next); draw().catch(failed); } }, "Older →");
  replace(root, card("Requests of the last seven days",
    h("div", { class: "filters" }, field("Outcome", outcomes), field("Strategy", strategies), field("Key", key), open),
    place, h("div", { class: "pager" }, newer, older)));

  get("/admin/names", signal).then((told) =>
    strategies.append(...told.strategies.map((name) => h("option", { value: name }, name)))).catch(() => {});

  async function draw() {
    const before = pages.at(-1);
    const told = await get(`/admin/requests?${query({ limit: 25, before, ...filters })}`, signal);
    if (before !== pages.at(-1)) return;
    newer.disabled = pages.length === 1;
    older.disabled = !told.next;
    older.dataset.next = told.next ?? "";
    const focused = document.activeElement?.dataset?.request;
    replace(place, told.data.length ? requestTable(told.data)
      : empty("No such request", Object.values(filters).some(Boolean) ? "No request fits these filters." : "Requests appear here a moment after they are answered."));
    if (focused) place.querySelector(`[data-request="${CSS.escape(focused)}"]`)?.focus();
  }

  poll(3000, signal, () => (pages.length === 1 ? draw() : null), failed);
}
