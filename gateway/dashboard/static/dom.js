// Elements are made of text, never of markup: nothing that a caller named can become more than words.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" && "value" in element && element.tagName !== "DATA") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export function replace(parent, ...children) {
  parent.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

let count = 0;
export const unique = (prefix) => `${prefix}-${++count}`;

// A labelled field of a form.
export function field(label, control, hint) {
  control.id ||= unique("field");
  const note = hint && h("span", { class: "hint", id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, note);
}

// One of several, as a row of radio buttons.
export function choice(label, options, current, changed) {
  const name = unique("choice");
  const radios = options.map(([value, text]) => {
    const input = h("input", { type: "radio", name, value, onchange: () => changed(value) });
    input.checked = value === current;
    return h("label", null, input, h("span", null, text));
  });
  return h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, label), radios);
}

// A table that scrolls by itself where the screen is narrow, and by keyboard.
export function table(caption, columns, rows) {
  const head = columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name));
  const body = rows.map((cells) =>
    h("tr", null, cells.map((cell, i) =>
      i === 0 ? h("th", { scope: "row", class: columns[i][1] }, cell) : h("td", { class: columns[i][1] }, cell))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", null, h("caption", { class: "unseen" }, caption), h("thead", null, h("tr", null, head)), h("tbody", null, body)));
}

export const empty = (title, text, more) =>
  h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), h("p", null, text), more);

export const badge = (text, kind) => h("span", { class: `badge ${kind ?? ""}` }, text);

export function card(title, ...children) {
  const id = unique("card");
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), children);
}

// Says something to whoever looks, and to whoever listens.
export function say(text, kind) {
  const place = document.getElementById("said");
  if (!place) return;
  const line = h("p", { class: `toast ${kind ?? ""}` }, text);
  place.append(line);
  setTimeout(() => line.remove(), 6000);
}
