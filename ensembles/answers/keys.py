"""From answers to canonical keys: which profile of `outcomes.extraction` a request calls for, and what each
answer says under it.

An answer that yields no key abstains (None); abstention is never a class of its own. When no answer yields
one, or the question is open, there are no keys at all and answers are compared by similarity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from outcomes.extraction import PROFILES, extract
from protocol.chat import ChatRequest, human_ask

__all__ = ["CHOICES", "answer_keys"]

CHOICES = ("auto", *(name for name in PROFILES if name != "labels"))
"""What an operator may set as the answer's profile."""

_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+(\S.*)$", re.MULTILINE)
_YES_NO = re.compile(r"\b(yes or no|yes/no|true or false|true/false)\b", re.IGNORECASE)
_MARKED = re.compile(
    r"\\boxed\{|####|\b(?:answer|result|total|sum)\b[^.\n]{0,40}?(?:\bis\b|=|:)[^.\n\d]{0,20}\d|=\s*\$?-?[\d,.]*\d",
    re.IGNORECASE,
)
MAX_BARE = 40
"""Characters of an answer that is a number and nothing else, unit included."""

_BARE = re.compile(r"\W*-?[\d.,]*\d\W*(?:\s*[A-Za-z%°]+)?\W*")


def answer_keys(request: ChatRequest, texts: Sequence[str], profile: str) -> tuple[str, list[str | None]]:
    """(profile used, a key or None for each text). `profile` is one of `CHOICES`; "free" gives no keys at
    all."""
    if profile == "auto":
        profile = _profile_for(request, texts)
    if profile == "free":
        return profile, [None] * len(texts)
    options = _options(human_ask(request)) if profile == "choice" else []
    return profile, [extract(text, profile, choices=options) for text in texts]


def _profile_for(request: ChatRequest, texts: Sequence[str]) -> str:
    """What kind of answer is asked for, said by the request or, for numbers, by how most answers end."""
    form = (request.body.get("response_format") or {}).get("type")
    ask = human_ask(request)
    if form in ("json_object", "json_schema"):
        return "json"
    if len(_options(ask)) >= 2:
        return "choice"
    if _YES_NO.search(ask):
        return "boolean"
    numeric = sum(_ends_in_a_number(text.strip()) for text in texts)
    return "number" if 2 * numeric > len(texts) else "free"


def _ends_in_a_number(answer: str) -> bool:
    """Whether an answer marks a number as its result, or is a number and nothing else."""
    return bool(_MARKED.search(answer) or (len(answer) <= MAX_BARE and _BARE.fullmatch(answer)))


def _options(ask: str) -> list[str]:
    """The texts of the lettered options in `ask`, when they run A, B, C, …; else none."""
    found = _OPTION.findall(ask)
    letters = "".join(letter for letter, _ in found)
    return [text for _, text in found] if letters and "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters) else []
