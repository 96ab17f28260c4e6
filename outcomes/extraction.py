r"""Answer extraction: from an answer's text to a canonical key, or None where none can be read (an
abstention).

One function a profile, shared by grading, voting and calibration, so that what counts as "the same answer"
is decided once. Profiles: `number` (as a decimal without separators), `choice` (a letter, or the option's
text), `boolean`, `json` (canonical dump), `code` (last fenced block), `boxed` (last balanced `\boxed{…}`),
`labels` (the one listed label that is named), `free` (normalised text).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

import orjson

__all__ = ["PROFILES", "extract", "last_number", "normalise", "strip_reasoning"]


def extract(text: str, profile: str, *, choices: Sequence[str] = ()) -> str | None:
    """The canonical key of an answer under `profile` (a key of `PROFILES`), or None: abstain, never a class
    of its own.

    Hidden reasoning is cut first. `choices`: the options in order, for `choice`; the labels, for `labels`.
    """
    return PROFILES[profile](strip_reasoning(text), choices)


def strip_reasoning(text: str) -> str:
    """The text after the last closing think tag; an unclosed one leaves nothing, for the answer never
    came."""
    head, tag, tail = text.rpartition("</think>")
    visible = tail if tag else head + tail
    return visible.partition("<think>")[0].strip()


def normalise(text: str) -> str:
    """Lower case, one space between words, no punctuation or quotes around the whole, no Markdown
    emphasis."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    plain = re.sub(r"\*\*|__|`", "", plain)
    return " ".join(plain.split()).strip(string.punctuation + "“”«»… ")


_NUMBER = re.compile(r"[-−+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+\b)?")


def last_number(text: str) -> str | None:
    """The last number in `text` as a plain decimal: `1,200.50` → `1200.5`, `$3.` → `3`. A boxed or braced
    number at the end counts before later prose, for that is how models mark their answer."""
    boxed = _last_boxed(text)
    for source in ([boxed] if boxed is not None else []) + [text]:
        for match in reversed(list(_NUMBER.finditer(source))):
            number = match.group()
            # `2024-05` and `A-4` hold a hyphen, not a minus sign.
            if number[0] in "-−" and match.start() and source[match.start() - 1].isalnum():
                number = number[1:]
            if (key := _decimal(number)) is not None:
                return key
    return None


def _decimal(number: str) -> str | None:
    try:
        value = Decimal(number.replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
    if not value.is_finite() or abs(value.adjusted()) > 60:
        return None
    plain = format(value.normalize(), "f")
    return "0" if plain == "-0" else plain


def _choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter chosen: the last `(X)` in range, else the letter a phrase such as "answer is B" names,
    else the last bare capital, else the only option whose text is quoted. The article "A" opening a
    sentence is no choice."""
    letters = string.ascii_uppercase[: len(choices) or 26]
    span = f"[{letters[0]}-{letters[-1]}]"
    patterns = (
        rf"\(({span})\)",
        rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\**({span})\b(?!'|\s+[a-z])",
        rf"^\W*({span})\W*$|^\W*({span})[).:](?=\s|$)",
        rf"(?<![\w'])({span})(?=[).:,]|\s*$)(?![\w'])",
    )
    for pattern in patterns:
        found = re.findall(pattern, text, re.MULTILINE)
        if found:
            last = found[-1]
            return last if isinstance(last, str) else last[0] or last[1]
    named = _labels(text, choices)
    if named is not None:
        return letters[[normalise(choice) for choice in choices].index(named)]
    bare = re.findall(rf"(?<![\w'])({span})(?![\w'])", text)
    return bare[-1] if bare and bare[-1] not in "AI" else None


def _labels(text: str, labels: Sequence[str]) -> str | None:
    """The label named in `text`; when several are, the one the answer opens with, else none. A label inside
    a longer listed label does not count beside it."""
    plain = normalise(text)
    spans = {}
    for label in map(normalise, labels):
        if label and (match := re.search(rf"(?<!\w){re.escape(label)}(?!\w)", plain)):
            spans[label] = match.span()
    named = [
        label
        for label, (start, end) in spans.items()
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in spans.values())
    ]
    if len(named) == 1:
        return named[0]
    return next((label for label in named if spans[label][0] == 0), None)


_YES = {
    "yes": "true",
    "true": "true",
    "correct": "true",
    "no": "false",
    "false": "false",
    "incorrect": "false",
}


def _boolean(text: str, choices: Sequence[str]) -> str | None:
    """`true` or `false` by the first word that says so."""
    words = re.findall(r"[a-z]+", text.casefold())
    return next((_YES[word] for word in words if word in _YES), None)


def _json(text: str, choices: Sequence[str]) -> str | None:
    """The first JSON value that parses, dumped with sorted keys: the whole text, a fenced block, or the
    outermost braces or brackets."""
    fenced = re.findall(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    outer = [text[text.find(a) : text.rfind(b) + 1] for a, b in ("{}", "[]") if a in text]
    for candidate in [text, *fenced, *outer]:
        try:
            return orjson.dumps(orjson.loads(candidate), option=orjson.OPT_SORT_KEYS).decode()
        except orjson.JSONDecodeError:
            continue
    return None


def _code(text: str, choices: Sequence[str]) -> str | None:
    """The last fenced block, trailing white space removed."""
    blocks = re.findall(r"```[^\n`]*\n(.*?)```", text, re.DOTALL)
    return "\n".join(line.rstrip() for line in blocks[-1].strip("\n").split("\n")) if blocks else None


def _last_boxed(text: str) -> str | None:
    r"""What the last balanced `\boxed{…}` holds."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin - 1, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin:i].strip()
    return None


def _boxed(text: str, choices: Sequence[str]) -> str | None:
    return _last_boxed(text)


def _number(text: str, choices: Sequence[str]) -> str | None:
    return last_number(text)


def _free(text: str, choices: Sequence[str]) -> str | None:
    return normalise(text) or None


PROFILES: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "number": _number,
    "choice": _choice,
    "boolean": _boolean,
    "json": _json,
    "code": _code,
    "boxed": _boxed,
    "labels": _labels,
    "free": _free,
}
