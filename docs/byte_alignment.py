"""Draws docs/byte-alignment.svg: `python docs/byte_alignment.py`.

Tokens and probabilities are those of the two built-in models (tests/test_pictures.py holds the tokens to them)."""

from __future__ import annotations

from html import escape
from pathlib import Path

TEXT = " is Reykjavík"
CUTS = {
    "SmolLM2 (byte-level BPE)": (" is", " Rey", "k", "jav", "í", "k"),
    "Gemma 3 (SentencePiece)": (" is", " Reykjav", "ík"),
}
ASKED = "The capital of Iceland is"
SYMBOLS = (  # after ASKED: the symbol, and p in each model; None where no token of the model emits these bytes
    (" Rey", 0.446, 0.000),
    (" the", 0.055, 0.167),
    (" a", 0.023, 0.131),
    (" Reykjavik", None, 0.048),
)
CHOSEN = " Reykjavik"
FED = {"SmolLM2": (" Rey", "k", "jav", "ik"), "Gemma 3": (" Reykjavik",)}

WIDTH, LEFT, CELL, ROW = 760, 190, 38, 26
STYLE = """
text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#24292f}
.m{font-family:ui-monospace,Menlo,Consolas,monospace}.s{font-size:11px;fill:#57606a}.h{font-weight:600}.c{text-anchor:middle}
.e{text-anchor:end}.a{fill:#cfe3ff;stroke:#2a6fdb}.b{fill:#ffe3c2;stroke:#c2660a}.q{fill:#2f9e62}.n{fill:none;stroke:#8c959f}
.sync{stroke:#2f9e62;stroke-width:2;stroke-dasharray:5 4}.hair{stroke:#8c959f;stroke-width:.6}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9da7b1}.a{fill:#16345f;stroke:#6ea8ff}
.b{fill:#4d2f0f;stroke:#f0a35a}.q{fill:#4cc98a}.n{stroke:#6e7681}.sync{stroke:#4cc98a}.hair{stroke:#6e7681}}
""".strip()


def shown(text: str) -> str:
    """A token as it is printed: a space is visible."""
    return escape(text.replace(" ", "␣"))


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words that stand on `y`."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, kind: str, words: str = "", rounded: int = 5) -> str:
    """A box one row high, with words in its middle."""
    inside = text(x + width / 2, y + 17, words, "m c") if words else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{ROW - 2}" rx="{rounded}" class="{kind}"/>{inside}'


def ends(tokens: tuple[str, ...]) -> list[int]:
    """Behind which bytes a token ends."""
    sizes = [len(token.encode()) for token in tokens]
    return [sum(sizes[: n + 1]) for n in range(len(sizes))]


def row(y: float, tokens: tuple[str, ...], kind: str) -> list[str]:
    """Tokens side by side, as wide as their bytes."""
    starts = (0, *ends(tokens))
    return [
        box(LEFT + start * CELL + 1, y, (end - start) * CELL - 2, kind, shown(token))
        for token, start, end in zip(tokens, starts, ends(tokens), strict=False)
    ]


def cut(top: float) -> list[str]:
    """1: one run of bytes between two rows of tokens, and where both may stop."""
    parts = [text(0, top, "1  One text is bytes. Each model cuts them its own way.", "h")]
    first, second = CUTS.values()
    data, y = TEXT.encode(), top + 20
    parts += row(y, first, "a") + row(y + 2 * ROW + 20, second, "b")
    for (name, _), at in zip(CUTS.items(), (y, y + 2 * ROW + 20), strict=True):
        parts.append(text(LEFT - 10, at + 17, name, "e"))
    for i, byte in enumerate(data):
        parts.append(box(LEFT + i * CELL, y + ROW + 8, CELL, "n", rounded=0))
        parts.append(text(LEFT + (i + 0.5) * CELL, y + ROW + 25, f"{byte:02x}", "m s c"))
    parts.append(text(LEFT - 10, y + ROW + 25, "bytes", "e"))
    for end in sorted(set(ends(first)) & set(ends(second))):
        x = LEFT + end * CELL
        parts.append(f'<line x1="{x}" y1="{y - 6}" x2="{x}" y2="{y + 3 * ROW + 24}" class="sync"/>')
    parts.append(
        text(
            LEFT,
            y + 3 * ROW + 42,
            "Green: both have a token end here, so both can be asked what comes next.",
            "s",
        )
    )
    return parts


def mix(top: float) -> list[str]:
    """2: symbols of the union, and what each model and their mean give them."""
    parts = [
        text(
            0,
            top,
            f"2  At such a point: “{escape(ASKED)}”. Tokens that emit the same bytes are one symbol.",
            "h",
        )
    ]
    y, columns = (
        top + 34,
        ((LEFT, "SmolLM2", "a"), (LEFT + 190, "Gemma 3", "b"), (LEFT + 380, "q = ½ p₁ + ½ p₂", "q")),
    )
    parts += [text(x, y - 8, name, "s") for x, name, _ in columns]
    for n, (symbol, *known) in enumerate(SYMBOLS):
        at = y + n * ROW
        values = [*known, sum(p or 0.0 for p in known) / 2]
        parts.append(text(LEFT - 10, at + 17, shown(symbol), "m e"))
        for (x, _, kind), p in zip(columns, values, strict=True):
            if p is None:
                parts.append(text(x, at + 17, "no such token: 0", "s"))
                continue
            length = max(1.0, p * 280)
            parts.append(
                f'<rect x="{x}" y="{at + 5}" width="{length:.0f}" height="14" rx="2" class="{kind}"/>'
            )
            parts.append(text(x + length + 6, at + 17, f"{p:.3f}", "s"))
    parts.append(
        text(
            LEFT,
            y + len(SYMBOLS) * ROW + 14,
            "SmolLM2 has to begin with ␣Rey; Gemma has the city as one token. They compete, and ␣Rey wins.",
            "s",
        )
    )
    return parts


def feed(top: float) -> list[str]:
    """3: a chosen symbol goes back to every member as bytes."""
    parts = [
        text(
            0,
            top,
            f"3  Whatever symbol is chosen, say {shown(CHOSEN)}, goes back to each model as bytes.",
            "h",
        )
    ]
    y = top + 18
    for n, ((name, tokens), kind) in enumerate(zip(FED.items(), ("a", "b"), strict=True)):
        at = y + n * (ROW + 6)
        parts.append(text(LEFT - 10, at + 17, name, "e"))
        parts += row(at, tokens, kind)
        told = f"{len(tokens)} ids, one forward" if len(tokens) > 1 else "1 id, one forward"
        parts.append(text(LEFT + ends(tokens)[-1] * CELL + 12, at + 17, told, "s"))
    x = LEFT + len(CHOSEN.encode()) * CELL
    parts.append(f'<line x1="{x}" y1="{y - 5}" x2="{x}" y2="{y + 2 * ROW + 10}" class="sync"/>')
    parts.append(
        text(LEFT, y + 2 * ROW + 26, "Both stand at the same byte again: the next point is reached.", "s")
    )
    return parts


def picture() -> str:
    """The SVG."""
    parts, height = [*cut(20), *mix(202), *feed(398)], 502
    told = "Two tokenizers cut the same bytes differently; fusing happens where both have a token end."
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(told)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("byte-alignment.svg").write_text(picture(), encoding="utf-8")
