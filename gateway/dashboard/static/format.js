// How figures are written. Each is a <data> element: what is read is rounded, its value is exact.
import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const cents = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

export const count = (value) => whole.format(value);

export function usd(value) {
  if (value === 0) return "$0";
  if (value < 0) return `−${usd(-value)}`;
  if (value >= 1) return `$${cents.format(value)}`;
  const digits = Math.min(12, 2 - Math.floor(Math.log10(value)));
  return `$${value.toFixed(digits).replace(/0+$/, "").replace(/\.$/, "")}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.9995) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return value < 60 ? `${value.toFixed(2)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

export const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)} %`;

export const figure = (name, value, text) =>
  h("data", { value: value ?? "", "data-figure": name }, text);

const two = (number) => String(number).padStart(2, "0");

export function clock(at, withSeconds = true) {
  const date = new Date(at * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}${withSeconds ? `:${two(date.getSeconds())}` : ""}`;
}

export function day(at) {
  const date = new Date(at * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

export function when(at) {
  const today = day(Date.now() / 1000) === day(at);
  return h("time", { datetime: new Date(at * 1000).toISOString() }, today ? clock(at) : `${day(at)} ${clock(at, false)}`);
}

export const span = (minutes) =>
  minutes < 60 ? `${minutes} min` : minutes <= 1440 ? `${minutes / 60} h` : `${minutes / 1440} days`;

// A tick of a time axis.
export const tick = (at, wholeSpanS) => (wholeSpanS > 2 * 86400 ? day(at).slice(5) : clock(at, wholeSpanS < 1200));
