"""The figures as one self-contained page: inline SVG that can be pointed at, no network, light and dark."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from benchmarks.routers.figures import COLOURS, FEW, Chart, Comparison, charts, comparisons

__all__ = ["page"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 430, 58, 44, 12, 14

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Routers on published outcome tables</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --soft: #6a7485; --line: #d9dee7; --back: #fff; --grey: #b7bfcc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #333b49; --back: #14181f; --grey: #566072; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p, figcaption { color: var(--soft); } figure { margin: 0; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); } .name { fill: var(--ink); }
.curve { fill: none; stroke: var(--grey); stroke-width: 1.2; }
.hit { fill: none; stroke: transparent; stroke-width: 11; }
.bar { stroke: var(--grey); stroke-width: 2; } .dot { fill: var(--c, var(--soft)); }
.router.best .curve, .router.best .bar { stroke: var(--c); stroke-width: 2; }
.router.on .curve, .router.on .bar { stroke: var(--c, var(--ink)); stroke-width: 3.4; }
.dim .router:not(.on) { opacity: .25; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .85rem; }
.legend span { cursor: default; } .legend i { display: inline-block; width: .9em; height: .25em; margin-right: .35em;
  vertical-align: middle; background: var(--c, var(--grey)); }
#tip { position: fixed; pointer-events: none; background: var(--ink); color: var(--back); padding: .25rem .5rem;
  border-radius: .3rem; font-size: .85rem; display: none; white-space: pre; z-index: 2; }
</style></head><body>
<h1>Routers on published outcome tables</h1>
<p>Each router is trained with default parameters on 70 % of the queries of a source and judged on the other 30 %, held
out by a hash of their text; those that fine-tune have charts of their own, "few queries". Point at a curve, a dot or a
name to follow one router through all charts. Crosses are single models. Differences smaller than the bars are
noise.</p>
"""

SCRIPT = """<div id="tip"></div><script>
const tip = document.getElementById("tip");
function follow(name) {
  document.querySelectorAll(".router").forEach(e => e.classList.toggle("on", e.dataset.name === name));
  document.body.classList.toggle("dim", Boolean(name));
}
document.addEventListener("pointerover", event => {
  const at = event.target.closest("[data-tip]"), router = event.target.closest(".router, .legend span");
  follow(router ? router.dataset.name : null);
  tip.style.display = at ? "block" : "none";
  if (at) tip.textContent = at.dataset.tip;
});
document.addEventListener("pointermove", event => {
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = event.clientY + 14 + "px";
});
</script></body></html>
"""


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD, *(_chart(chart) for chart in charts(found))]
    parts += [_scores(one) for one in comparisons(found)]
    about = found["about"]
    parts.append(
        f"<p>{escape(about['command'])}, {escape(about['made'])}, embedder {escape(about['embedder'])}.</p>"
    )
    return "\n".join([*parts, SCRIPT])


def _chart(chart: Chart) -> str:
    points = [point for _, series in chart.series for point in series] + [mark[1:] for mark in chart.marks]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log = chart.kind == "frontier"
    place_x = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log)
    place_y = _scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    lines = [_axes(chart, place_x, place_y, (min(xs), max(xs)), (min(ys), max(ys)), log)]
    for i, (name, series) in reversed(list(enumerate(chart.series))):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in series)
        shown = "dot" if len(series) == 1 else "curve"
        body = f'<polyline class="curve" points="{path}"/>'
        body += f'<polyline class="hit" points="{path}" data-tip="{escape(name)}"/>'
        dots = "".join(
            f'<circle class="dot" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="{4 if shown == "dot" else 2.4}" '
            f'data-tip="{escape(name)}\n{x:.4g}: {y:.4f}"/>'
            for x, y in series
        )
        lines.append(f"{_group(name, i)}{body}{dots}</g>")
    for name, x, y in chart.marks:
        px, py = place_x(x), place_y(y)
        cross = f"M{px - 4:.1f} {py - 4:.1f}l8 8m0 -8l-8 8"
        lines.append(
            f'<path d="{cross}" stroke="var(--ink)" fill="none"/><circle cx="{px:.1f}" cy="{py:.1f}" r="8" '
            f'fill="transparent" data-tip="{escape(name)}\n{x:.4g}: {y:.4f}"/>'
        )
    names = "".join(
        f'<span data-name="{escape(name)}" style="{_colour(i)}"><i></i>{escape(name)}</span>'
        for i, (name, _) in enumerate(chart.series)
    )
    return (
        f"<h2>{escape(chart.title)}</h2><figure>{_svg(HEIGHT, lines)}"
        f'<figcaption class="legend">{names}</figcaption></figure>'
    )


def _axes(chart: Chart, place_x: Any, place_y: Any, x: Any, y: Any, log: bool) -> str:
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place_y(value):.1f}" y2="{place_y(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{place_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in _ticks(*y)
    ]
    parts += [
        f'<text x="{place_x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        for value in (_decades(*x) if log else _ticks(*x))
    ]
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x)}</text>'
        f'<text transform="translate(13 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(chart.y)}</text>'
    )
    return "".join(parts)


def _scores(one: Comparison) -> str:
    """Mean score of every router with its interval, best first, beside the baselines."""
    result = one.found
    wanted = ("oracle", "best of each task, chosen on train", "best single, chosen on train", "random")
    baselines = [row for row in result["baselines"] if row["name"] in wanted]
    routers = sorted(result["routers"], key=lambda row: -row["score"]["mean"])
    rows = [*baselines, *routers]
    low, high = min(row["score"]["low"] for row in rows), max(row["score"]["high"] for row in rows)
    left, step = 230, 19
    place = _scale(low, high, left, WIDTH - RIGHT)
    height = step * len(rows) + 30
    lines = [
        f'<line class="grid" x1="{place(v):.1f}" x2="{place(v):.1f}" y1="4" y2="{height - 22}"/>'
        f'<text x="{place(v):.1f}" y="{height - 8}" text-anchor="middle">{v:g}</text>'
        for v in _ticks(low, high)
    ]
    for i, row in enumerate(rows):
        y, score, is_router = 14 + step * i, row["score"], i >= len(baselines)
        tip = f"{row['name']}\nscore {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        tip += f"\ngap closed {row['gap']:+.0%}"
        lines.append(
            f"{_group(row['name'], i - len(baselines) if is_router else len(COLOURS))}"
            f'<rect x="0" y="{y - 9}" width="{WIDTH}" height="{step}" fill="transparent" data-tip="{escape(tip)}"/>'
            f'<text class="name" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(row["name"])}</text>'
            f'<line class="bar" x1="{place(score["low"]):.1f}" x2="{place(score["high"]):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{place(score["mean"]):.1f}" cy="{y}" r="3.6" data-tip="{escape(tip)}"/></g>'
        )
    about = f"{result['train_queries']} training, {result['test_queries']} test queries, {len(result['models'])} models"
    if one.few:
        about += f". {FEW.removesuffix('.')} ({escape(result['command'])})"
    title = f"{escape(one.name)}: mean score at quality 1, with 95 % intervals"
    return f"<h2>{title}</h2><p>{about}.</p><figure>{_svg(height, lines)}</figure>"


def _svg(height: float, lines: list[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">' + "\n".join(lines) + "</svg>"


def _group(name: str, place: int) -> str:
    best = " best" if place < len(COLOURS) else ""
    return f'<g class="router{best}" data-name="{escape(name)}" style="{_colour(place)}">'


def _colour(place: int) -> str:
    return f"--c: {COLOURS[place]}" if 0 <= place < len(COLOURS) else ""


def _scale(low: float, high: float, start: float, end: float, *, log: bool = False) -> Any:
    """A function from values to places on the page."""
    of = math.log10 if log else float
    a, b = of(low), of(high)
    span = (b - a) or 1.0
    a, span = a - 0.03 * span, 1.06 * span
    return lambda value: start + (of(value) - a) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """About five round values within the range."""
    raw = (high - low or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 3) if low <= m * 10.0**p <= high]
