"""Texts that mean different things though their embeddings lie close: other numbers, a negation, an opposite.

Embeddings hardly see these ("enable 2FA" is nearer to "disable 2FA" than to "turn on 2FA"). So a semantic hit needs the
same numbers in the same order, and no word that one side has and the other lacks may turn the meaning round. The
guard knows English; of other languages it sees numbers and code.
"""

from __future__ import annotations

import re

__all__ = ["conflicting"]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_QUOTED = re.compile(r"`[^`]*`|\"[^\"]*\"|“[^”]*”")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEGATIONS = _set(
    "no not never none nobody nothing nowhere neither nor without cannot except unless hardly barely lacks lack false"
    " only least most fewer more less"
)
_NUMERALS = _set(
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty"
    " ninety hundred thousand million billion half twice double triple first second third fourth fifth last next"
    " previous"
)
_PREFIXES = ("un", "dis", "in", "im", "il", "ir", "non", "de", "mis", "anti", "counter")
_OPPOSITES = frozenset(
    frozenset(pair.split("/"))
    for pair in _set(
        "on/off enable/disable start/stop open/close open/closed add/remove add/delete create/delete install/uninstall"
        " increase/decrease raise/lower up/down before/after above/below over/under left/right old/new min/max"
        " minimum/maximum buy/sell import/export encode/decode encrypt/decrypt upload/download login/logout push/pull"
        " accept/reject allow/deny allow/block true/false yes/no good/bad best/worst big/small large/small long/short"
        " hot/cold fast/slow first/last win/lose won/lost male/female man/woman men/women boy/girl east/west"
        " north/south high/low"
        " ascending/descending asc/desc positive/negative plus/minus include/exclude with/without and/or all/none"
        " always/never begin/end send/receive read/write lock/unlock show/hide inside/outside in/out from/to pros/cons"
        " advantages/disadvantages cheap/expensive cheapest/dearest shortest/longest smallest/largest lowest/highest"
        " oldest/newest youngest/oldest fewest/most mother/father brother/sister son/daughter husband/wife king/queen"
        " day/night morning/evening summer/winter today/tomorrow today/yesterday tomorrow/yesterday past/future"
    )
)


def conflicting(one: str, other: str) -> bool:
    """Whether the texts differ in something that turns the answer round, however alike they are."""
    if _NUMBER.findall(one) != _NUMBER.findall(other) or sorted(_QUOTED.findall(one)) != sorted(
        _QUOTED.findall(other)
    ):
        return True
    ours, theirs = (set(_words(text)) for text in (one, other))
    here, there = ours - theirs, theirs - ours
    if any(_turns(word) for word in here | there):
        return True
    return any(_opposite(a, b) for a in here for b in there)


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def _turns(word: str) -> bool:
    return word in _NEGATIONS or word in _NUMERALS or word.endswith("n't")


def _opposite(one: str, other: str) -> bool:
    if frozenset((one, other)) in _OPPOSITES:
        return True
    short, long = sorted((one, other), key=len)
    return len(short) > 2 and any(long == prefix + short for prefix in _PREFIXES)
