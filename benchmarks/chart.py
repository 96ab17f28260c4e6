"""Bars as an SVG that can be read on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Group", "chart"]

WIDTH, BAR, GAP = 760, 16, 6


@dataclass(frozen=True, slots=True)
class Bar:
    """`told` stands behind it."""

    label: str
    value: float
    told: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Bars of one scale, on which `full` is the whole width; longer ones are cut, and say so."""

    title: str
    bars: Sequence[Bar]
    full: float


def chart(groups: Sequence[Group], told: str, label: int = 130) -> str:
    """The SVG; `told` is what it says to those who do not see it, `label` the room for labels, in pixels."""
    parts: list[str] = []
    y = 24
    for group in groups:
        parts.append(f'<text x="0" y="{y}" class="h">{escape(group.title)}</text>')
        y += 10
        for bar in group.bars:
            length = bar.value / group.full
            width = min(1.0, length) * (WIDTH - label - 110)
            kind = "us" if bar.ours else "them"
            value = bar.told + (" (bar cut)" if length > 1 else "")
            parts.append(f'<text x="{label - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>')
            parts.append(f'<rect x="{label}" y="{y}" width="{width:.1f}" height="{BAR}" class="{kind}"/>')
            parts.append(f'<text x="{label + width + 6:.1f}" y="{y + 12}">{escape(value)}</text>')
            y += BAR + GAP
        y += 24
    style = (
        "text{font:12px sans-serif;fill:#333}.h{font-weight:bold}.us{fill:#2a6fdb}.them{fill:#b7bdc6}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.them{fill:#5b626c}}"
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        f'aria-label="{escape(told)}">\n<style>{style}</style>\n{body}\n</svg>\n'
    )
