// Drawings. Each chart is an image with a name, and its figures stand in a table beside or below it.
import { h, replace, s, unique } from "./dom.js";

const HEIGHT = 180;
const LEFT = 56;
const BOTTOM = 22;
const TOP = 8;

// Draws anew when the place for it changes its width.
function fitted(draw) {
  const place = h("div", { class: "chart" });
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now && now !== width) {
      width = now;
      replace(place, draw(width));
    }
  }).observe(place);
  return place;
}

// Round steps from 0 to at least `most`.
export function steps(most, wanted = 4) {
  if (!(most > 0)) return [0, 1];
  const rough = most / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const told = [];
  for (let i = 0; i * step < most + step * 0.999; i++) told.push(i * step);
  return told;
}

// Figures of one axis, all with as many decimals as the one that needs most.
function even(values, write) {
  const texts = values.map(write);
  const decimals = Math.max(...texts.map((text) => (text.split(".")[1] ?? "").length));
  return texts.map((text, i) => (decimals && values[i] && text.startsWith("$") ? `$${values[i].toFixed(decimals)}` : text));
}

function axisY(values, y, width, write) {
  const texts = even(values, write);
  return values.map((value, i) => s("g", { class: "axis" },
    s("line", { x1: LEFT, x2: width, y1: y(value), y2: y(value), class: value === 0 ? "base" : "grid" }),
    s("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, texts[i])));
}

// Stacked bars over time. `layers`: [{name, kind, values}]; `ticks(i)` names bucket i.
export function bars(label, layers, { ticks, write }) {
  return fitted((width) => {
    const buckets = layers[0]?.values.length ?? 0;
    const sums = Array.from({ length: buckets }, (_, i) => layers.reduce((sum, layer) => sum + layer.values[i], 0));
    const values = steps(Math.max(0, ...sums), 3);
    const top = values.at(-1);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
    const each = (width - LEFT) / buckets;
    const drawn = sums.map((sum, i) => {
      let below = 0;
      const words = [ticks(i), ...layers.filter((layer) => layer.values[i]).map((layer) => `${layer.name}: ${write(layer.values[i])}`)];
      const parts = layers.map((layer) => {
        const value = layer.values[i];
        if (!value) return null;
        const upper = y(below + value);
        const part = s("rect", { class: layer.kind, x: LEFT + i * each + each * 0.1, width: Math.max(1, each * 0.8), y: upper, height: Math.max(0.75, y(below) - upper), rx: Math.min(2, each / 5) });
        below += value;
        return part;
      });
      return s("g", null, s("title", null, words.join("\n")), s("rect", { class: "hit", x: LEFT + i * each, y: TOP, width: each, height: HEIGHT - TOP - BOTTOM }), parts);
    });
    const marks = width < 500 ? 3 : 6;
    const names = Array.from({ length: marks }, (_, i) => Math.round((i * (buckets - 1)) / (marks - 1)));
    const bottom = names.map((i, n) => s("text", {
      class: "tick", x: LEFT + (i + 0.5) * each, y: HEIGHT - 4,
      "text-anchor": n === 0 ? "start" : n === marks - 1 ? "end" : "middle",
    }, ticks(i)));
    return s("svg", { width, height: HEIGHT, role: "img", "aria-label": label }, axisY(values, y, width, write), drawn, bottom);
  });
}

// Quality (0 to 1, upwards) against cost (to the right). `points`: [{name, kind, quality, cost_usd, quality_low, …}],
// `frontier`: indices of those that no other beats, by cost.
export function scatter(label, points, frontier, { write }) {
  const tall = 280;
  return fitted((width) => {
    const costs = steps(Math.max(...points.map((point) => point.cost_usd)) * 1.02, width < 500 ? 2 : 4);
    const lows = points.map((point) => point.quality_low ?? point.quality);
    const highs = points.map((point) => point.quality_high ?? point.quality);
    const floor = Math.max(0, Math.floor((Math.min(...lows) - 0.02) * 10) / 10);
    const ceiling = Math.min(1, Math.ceil((Math.max(...highs) + 0.02) * 10) / 10);
    const x = (cost) => LEFT + 6 + ((width - LEFT - 22) * cost) / costs.at(-1);
    const y = (quality) => TOP + 6 + (tall - TOP - 48) * (1 - (quality - floor) / (ceiling - floor || 1));
    const step = [0.02, 0.05, 0.1, 0.2, 0.25].find((size) => (ceiling - floor) / size <= 5);
    const rungs = Array.from({ length: Math.floor((ceiling - floor) / step + 1.001) }, (_, i) => floor + i * step);
    const grid = rungs.map((quality) => s("g", { class: "axis" },
      s("line", { x1: LEFT, x2: width, y1: y(quality), y2: y(quality), class: quality === floor ? "base" : "grid" }),
      s("text", { x: LEFT - 8, y: y(quality) + 4, "text-anchor": "end" }, quality.toFixed(2))));
    const bottom = costs.map((cost, i) => s("text", { class: "tick", x: x(cost), y: tall - 22, "text-anchor": i === 0 ? "start" : i === costs.length - 1 ? "end" : "middle" }, even(costs, write)[i]));
    const line = frontier.map((i) => points[i]).map((point, i) => `${i ? "L" : "M"}${x(point.cost_usd)} ${y(point.quality)}`).join("");
    const taken = [];
    const dots = points.map((point, i) => {
      const at = [x(point.cost_usd), y(point.quality)];
      const left = at[0] > width * 0.6;
      let text = at[1] + 4;
      while (taken.some(([other, up, side]) => side === left && Math.abs(other - at[0]) < 150 && Math.abs(up - text) < 14)) text += 14;
      taken.push([at[0], text, left]);
      const spread = point.quality_low !== undefined && point.quality_low !== null &&
        s("line", { class: "spread", x1: at[0], x2: at[0], y1: y(point.quality_low), y2: y(point.quality_high) });
      return s("g", { class: `dot ${point.kind} ${frontier.includes(i) ? "on" : ""}` },
        s("title", null, `${point.name}: quality ${point.quality.toFixed(3)}, ${write(point.cost_usd)} a request`), spread,
        point.kind === "strategy" ? s("circle", { cx: at[0], cy: at[1], r: 6 }) : s("rect", { x: at[0] - 5, y: at[1] - 5, width: 10, height: 10, rx: 2 }),
        s("text", { x: at[0] + (left ? -11 : 11), y: text, "text-anchor": left ? "end" : "start" }, point.name));
    });
    return s("svg", { width, height: tall, role: "img", "aria-label": label }, grid, bottom,
      s("text", { class: "tick", x: width - 4, y: tall - 5, "text-anchor": "end" }, "US dollars a request →"),
      line && s("path", { class: "frontier", d: line }), dots);
  });
}

// A share of a whole as a thin bar; the number stands beside it.
export function meter(share, kind) {
  const width = 100;
  return s("svg", { class: `meter ${kind ?? ""}`, viewBox: `0 0 ${width} 6`, preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "all", width, height: 6, rx: 3 }),
    share > 0 && s("rect", { class: "part", width: Math.max(1, Math.min(1, share) * width), height: 6, rx: 3 }));
}

// One call in time: from `began` to `ended` of `whole` seconds.
export function stretch(began, ended, whole, kind) {
  const id = unique("stretch");
  const from = whole ? Math.min(100, (began / whole) * 100) : 0;
  const wide = whole ? Math.max(0.6, ((ended - began) / whole) * 100) : 100;
  return s("svg", { id, class: `stretch ${kind}`, "aria-hidden": "true", width: "100%", height: "14" },
    s("rect", { class: "all", x: "0", width: "100%", y: 6, height: 2 }),
    s("rect", { class: "part", x: `${from}%`, width: `${Math.min(wide, 100 - from)}%`, y: 1, height: 12, rx: 3 }));
}
