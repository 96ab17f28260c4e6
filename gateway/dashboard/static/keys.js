// Keys and budgets: make, rotate, revoke. A secret is shown once, here, and kept nowhere.
import { get, patch, poll, post } from "./api.js";
import { meter } from "./charts.js";
import { badge, card, empty, field, h, replace, say, table } from "./dom.js";
import { figure, usd, when } from "./format.js";

const PERIODS = { day: "a day", week: "a week", month: "a month", total: "in total" };
const STATES = { active: "good", expired: "warn", revoked: "bad" };

export function keys({ root, tools, signal, failed }) {
  const list = h("div");
  const budgets = h("div");
  const audit = h("div");
  const ended = h("input", { type: "checkbox", id: "ended", onchange: () => draw().catch(failed) });
  const make = h("button", { type: "button", class: "primary", onclick: () => creating(draw) }, "New key");
  tools.append(make);
  replace(root, card("Keys", h("div", { class: "filters" }, h("label", { class: "check", for: "ended" }, ended, "Show revoked and expired ones")), list),
    card("Budgets", budgets), card("Audit log", audit));

  async function draw() {
    const [all, spent, deeds] = await Promise.all([get("/admin/keys", signal), get("/admin/budgets", signal), get("/admin/audit?limit=20", signal)]);
    const shown = all.data.filter((key) => ended.checked || key.state === "active").reverse();
    replace(list, shown.length ? keyTable(shown, spent.data, draw) : empty("No keys", "A key tells callers apart, limits what they may use, and ends when you revoke it.",
      h("button", { type: "button", onclick: () => creating(draw) }, "Make the first key")));
    replace(budgets, spent.data.length ? budgetTable(spent.data) : empty("No budgets", "Budgets of keys are set when they are made; those of teams, models and everyone in the config (limits)."));
    replace(audit, deeds.data.length ? table("Audit log, latest first", [["When", ""], ["Who", ""], ["What", ""], ["Key", ""]],
      deeds.data.map((deed) => [deed.at ? when(deed.at) : "–", deed.actor, deed.action, deed.alias ?? deed.key])) : empty("Nothing yet", "Every deed with keys is noted here."));
  }

  poll(5000, signal, () => (document.querySelector("dialog[open]") || list.contains(document.activeElement) ? null : draw()), failed);
}

function keyTable(rows, spent, drawn) {
  return table("Keys and their limits", [["Name", ""], ["Team", "wide"], ["May name", "wide"], ["Limits", ""], ["Ends", "wide"], ["State", ""], [h("span", { class: "unseen" }, "Actions"), "acts"]], rows.map((key) => {
    const name = key.alias ?? key.id;
    const live = key.state === "active";
    const limits = [key.limits.rpm && `${key.limits.rpm} requests/min`, key.limits.tpm && `${key.limits.tpm} tokens/min`, key.limits.concurrent && `${key.limits.concurrent} at once`].filter(Boolean);
    const money = spent.filter((row) => row.scope === `key:${key.id}`);
    return [
      h("span", { "data-key": key.id }, name, key.alias ? h("span", { class: "muted small block" }, key.id) : null),
      key.team ?? "–", key.models === null ? "everything" : key.models.join(", ") || "nothing",
      h("span", null, limits.join(", ") || (money.length ? "" : "none"), money.map((row) => h("span", { class: "block" }, `${usd(row.limit_usd)} ${PERIODS[row.period]}`)),
        key.text_days ? h("span", { class: "block" }, badge(`text stored ${key.text_days} days`, "warn")) : null),
      key.expires ? when(key.expires) : "never", badge(key.state, STATES[key.state]),
      live ? h("span", { class: "buttons" },
        h("button", { type: "button", class: "small", "aria-label": `Text of ${name}`, onclick: () => storing(key, name, drawn) }, "Text"),
        h("button", { type: "button", class: "small", "aria-label": `Rotate ${name}`, onclick: () => rotating(key, name, drawn) }, "Rotate"),
        h("button", { type: "button", class: "small danger", "aria-label": `Revoke ${name}`, onclick: () => revoking(key, name, drawn) }, "Revoke")) : ""];
  }));
}

function budgetTable(rows) {
  return table("Budgets and what is spent of them", [["Whose", ""], ["Period", ""], ["Spent", "num"], ["Of", "num"], ["Share", "share"]], rows.map((row) => {
    const part = row.limit_usd ? row.spent_usd / row.limit_usd : 1;
    return [h("span", null, row.name, row.scope.includes(":") ? h("span", { class: "muted" }, ` ${row.scope.split(":")[0]}`) : null), row.period,
      figure(`spent:${row.scope}:${row.period}`, row.spent_usd, usd(row.spent_usd)), usd(row.limit_usd), h("span", { class: "shared" }, meter(part, part >= 0.9 ? "bad" : part >= 0.7 ? "warn" : ""), h("span", null, part > 0 && part < 0.01 ? "< 1 %" : `${Math.round(part * 100)} %`))];
  }));
}

// A dialog with a form; `act` does the deed and may return what is shown instead of the form afterwards.
function dialog(title, parts, doing, act, { danger = false } = {}) {
  const said = h("p", { class: "notice bad", role: "alert", hidden: true });
  const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, doing);
  const close = () => { box.close(); };
  const form = h("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      go.disabled = true;
      try {
        const more = await act(form);
        if (more) { replace(form, h("h2", { id: "dialog-title" }, title), more, h("div", { class: "actions" }, h("button", { type: "button", class: "primary", autofocus: true, onclick: close }, "Done"))); form.querySelector("button.primary").focus(); }
        else close();
      } catch (error) {
        said.hidden = false;
        said.textContent = error.message;
        go.disabled = false;
      }
    },
  }, h("h2", { id: "dialog-title" }, title), parts, said, h("div", { class: "actions" }, h("button", { type: "button", onclick: close }, "Cancel"), go));
  const box = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => box.remove() }, form);
  document.body.append(box);
  box.showModal();
}

function secret(told, note) {
  const text = h("input", { class: "secret", readonly: true, value: told.secret, "data-secret": "", onfocus: () => text.select() });
  const copy = h("button", { type: "button", onclick: async () => { await navigator.clipboard.writeText(told.secret).then(() => say("Copied."), () => { text.focus(); text.select(); }); } }, "Copy");
  return h("div", { class: "stack" }, h("p", null, note), h("div", { class: "inline" }, field("Secret", text), copy));
}

const text = (props) => h("input", { type: "text", spellcheck: "false", autocomplete: "off", ...props });
const number = (props) => h("input", { type: "number", min: "0", step: "any", inputmode: "decimal", ...props });

// The fields of a key's terms, as those of `key` are now; `read` gives what was changed, as the admin API takes it.
function terms(names, key = { limits: {} }) {
  const words = [["alias", "Alias", text({ maxlength: "128", value: key.alias ?? "" })], ["team", "Team", text({ maxlength: "128", list: "teams", value: key.team ?? "" })], ["owner", "Owner", text({ maxlength: "256", value: key.owner ?? "" })]];
  const days = number({ max: "36500" });
  const never = h("input", { type: "checkbox", id: "never" });
  const tags = text({ value: key.tags?.join(", ") ?? "" });
  const limits = [["rpm", "Requests a minute"], ["tpm", "Tokens a minute"], ["concurrent", "Requests at once"]].map(([name, label]) => [name, label, number({ step: "1", min: "1", value: key.limits[name] ?? "" })]);
  const stored = number({ value: key.text_days ?? "" });
  const budgets = Object.keys(PERIODS).map((period) => [period, number({ value: key.limits.budgets_usd?.[period] ?? "" })]);
  const boxes = [...new Set([...names.strategies, ...names.models, ...(key.models ?? [])])].map((name) => h("input", { type: "checkbox", value: name, id: `may-${name}`, checked: key.models?.includes(name) ?? false }));
  const whole = () => ({
    ...Object.fromEntries(words.map(([name, , input]) => [name, input.value.trim() || null])),
    tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
    text_days: Number(stored.value) || null,
    models: boxes.some((box) => box.checked) ? boxes.filter((box) => box.checked).map((box) => box.value) : null,
    limits: { ...Object.fromEntries(limits.filter(([, , input]) => input.value).map(([name, , input]) => [name, Number(input.value)])), budgets_usd: Object.fromEntries(budgets.filter(([, input]) => input.value).map(([period, input]) => [period, Number(input.value)])) },
  });
  const before = whole();
  return {
    first: words[0][2],
    parts: [
      h("datalist", { id: "teams" }, names.teams.map((name) => h("option", { value: name }))),
      h("div", { class: "form-grid" }, words.map(([, label, input]) => field(label, input)), field("Tags", tags, "separated by commas"), field("Ends after (days)", days, key.expires ? "empty: as it was" : "empty: never"), limits.map(([, label, input]) => field(label, input)), field("Store its words (days)", stored, "empty: no prompt and no answer is stored")),
      key.expires ? h("label", { class: "check", for: "never" }, never, "Never ends") : null,
      h("fieldset", null, h("legend", null, "Budgets in US dollars"), h("div", { class: "form-grid four" }, budgets.map(([period, input]) => field(period === "total" ? "In total" : `A ${period}`, input)))),
      h("fieldset", null, h("legend", null, "May name"), h("p", { class: "hint" }, "None marked: everything."), h("div", { class: "checks" }, boxes.map((box) => h("label", { class: "check", for: box.id }, box, box.value)))),
    ],
    read: () => ({ ...Object.fromEntries(Object.entries(whole()).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name]))), ...(never.checked ? { expires_in_days: null } : days.value ? { expires_in_days: Number(days.value) } : {}) }),
  };
}

async function creating(drawn) {
  const { first, parts, read } = terms(await get("/admin/names"));
  first.autofocus = true;
  dialog("New key", parts, "Create key", async () => {
    const told = await post("/admin/keys", read());
    await drawn();
    return secret(told, "This is the only time that the secret is shown. Copy it now.");
  });
}

async function rotating(key, name, drawn) {
  const { parts, read } = terms(await get("/admin/names"), key);
  const grace = number({ max: "720", value: "24", autofocus: true });
  dialog(`Rotate ${name}`, [h("p", null, "The key gets a new secret; its terms stay, but for what you change."), field("The old one is good for (hours)", grace), h("details", null, h("summary", null, "Change its terms"), parts)], "Rotate", async () => {
    const told = await post(`/admin/keys/${encodeURIComponent(key.id)}/rotate`, { ...read(), grace_s: Number(grace.value || 0) * 3600 });
    await drawn();
    return secret(told, "This is the only time that the new secret is shown. Copy it now.");
  });
}

function storing(key, name, drawn) {
  const days = h("input", { type: "number", min: "0", step: "any", value: key.text_days ?? "", autofocus: true });
  dialog(`Prompts and answers of ${name}`, [h("p", null, "They are stored with the ledger, for admins to read, and removed after so many days. Whoever uses the key should know."),
    field("Store them for (days)", days, "empty: store none, and remove what there is at once")], "Save", async () => {
    const told = await patch(`/admin/keys/${encodeURIComponent(key.id)}`, { text_days: Number(days.value) || null });
    await drawn();
    say(told.text_days ? `Prompts and answers of ${name} are stored for ${told.text_days} days.` : `No prompt and no answer of ${name} is stored.`);
  });
}

function revoking(key, name, drawn) {
  dialog(`Revoke ${name}`, [h("p", null, "The key is refused everywhere within a second, and for good.")], "Revoke key", async () => {
    await post(`/admin/keys/${encodeURIComponent(key.id)}/revoke`);
    await drawn();
    say(`${name} is revoked.`);
  }, { danger: true });
}
