"""The figures as PNG, by matplotlib (extra `dev`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.routers.figures import COLOURS, Chart, charts

__all__ = ["write"]

NAMED = 6


def write(found: dict[str, Any], folder: Path) -> list[Path]:
    """One picture a chart, `routers-KIND-SOURCE.png`, or `…-few.png`."""
    from matplotlib.figure import Figure

    written = []
    for chart in charts(found):
        figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
        _draw(figure.add_subplot(), chart)
        path = folder / f"routers-{chart.name}.png"
        figure.savefig(path, metadata={"Software": None})
        written.append(path)
    return written


def _draw(axes: Any, chart: Chart) -> None:
    for i, (name, points) in reversed(list(enumerate(chart.series))):
        style: dict[str, Any] = {"color": "0.78", "linewidth": 0.9, "zorder": 1}
        if name == "random":
            style = {"color": "0.3", "linewidth": 1.0, "linestyle": "--", "label": name, "zorder": 2}
        elif i < NAMED:
            style = {"color": COLOURS[i], "linewidth": 1.7, "label": name, "zorder": 3}
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 15 else None, **style)
    for name, x, y in chart.marks:
        axes.plot(x, y, marker="x", color="0.25", markersize=5, linestyle="", zorder=4)
        axes.annotate(name.rpartition("/")[2], (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    if chart.kind == "frontier":
        axes.set_xscale("log")
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=7, loc="lower right", title="best first; others grey")
