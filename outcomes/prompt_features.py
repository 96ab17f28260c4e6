"""What a person could say about a prompt without answering it: features with names, by rules.

Rules are regular expressions over the text: a few hundred microseconds a prompt, no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NAMES", "prompt_features"]


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


TASKS = {
    "code": _rule(
        r"```|\bdef \w+\(|\bfunction\b.*\(|#include|\bpython\b|\bjavascript\b|\bsql\b|\bassert \w+\("
    ),
    "mathematics": _rule(
        r"\\frac|\\sqrt|\$[^$\n]+\$|\d\s*[-+*/=^]\s*\d|\b(calculate|equation|integer|polynomial)\b"
    ),
    "word problem": _rule(r"\bhow (many|much)\b|\b(total|each|per|twice|half|dollars?|percent)\b.*\d|\$\d"),
    "multiple choice": _rule(r"^\s*\(?[A-D][).:]\s|\boptions?:|\bchoices?\b"),
    "translation": _rule(r"\btranslat|\b(in|into|from) (french|german|chinese|spanish|japanese)\b"),
    "summary": _rule(r"\bsummar|\btl;?dr\b|\babstract\b"),
    "classification": _rule(r"\bclassif|\bsentiment\b|\bcategor|\blabel\b|\bentail|\btrue or false\b"),
    "extraction": _rule(r"\bextract\b|\bjson\b|\bentit(y|ies)\b|\bparse\b|\btable\b"),
    "reading": _rule(r"\b(passage|paragraph|context|document|article)s?\b\s*[:.]|according to"),
    "commonsense": _rule(r"\bmost likely\b|\bending\b|\bwhat happens\b|\bgoal\b|\bfinish(es)? the\b"),
    "writing": _rule(r"\b(write|compose|draft) (a|an|the|me)\b|\b(essay|poem|story|email|letter|blog)\b"),
    "roleplay": _rule(r"\b(pretend|act as|you are (a|an)|imagine you)\b"),
    "knowledge": _rule(r"^\s*(who|where|when|which)\b|\b(capital|president|century|invented|author) \w+"),
    "law or medicine": _rule(r"\b(court|statute|plaintiff|defendant|patient|symptom|diagnos|treatment)\w*"),
    "science": _rule(r"\b(atom|cell|energy|species|molecul|protein|velocity|reaction|electr)\w*"),
}
"""Task type: a prompt may be of several."""

REASONING = {
    "step by step": _rule(r"step[- ]by[- ]step|\b(first|then|next|finally),|\bshow your work\b"),
    "comparison": _rule(r"\b(compare|difference|versus|vs\.?|better|greater|less|more) (than|between|of)?\b"),
    "cause": _rule(r"\b(why|because|therefore|hence|cause[sd]?|explain)\b"),
    "supposition": _rule(r"\b(if|suppose|assum|given that|would|hypothe)\w*"),
    "proof": _rule(r"\b(prove|proof|show that|derive|theorem|lemma)\b"),
    "negation": _rule(r"\b(not|never|except|neither|nor|without|false|incorrect)\b"),
    "quantifiers": _rule(r"\b(all|every|any|some|none|each|only|at (least|most))\b"),
    "time": _rule(r"\b(before|after|during|year|month|week|day|hour|minute)s?\b"),
}
"""Reasoning pattern: the logarithm of how often its words are there."""

WORD, SENTENCE, NUMBER = (
    re.compile(r"\w+"),
    re.compile(r"[.!?。？！]+(?:\s|$)"),
    re.compile(r"\d+(?:[.,]\d+)*"),
)

SHAPES: dict[str, Callable[[str, list[str]], float]] = {
    "characters": lambda text, words: np.log1p(len(text)),
    "words": lambda text, words: np.log1p(len(words)),
    "sentences": lambda text, words: np.log1p(len(SENTENCE.findall(text))),
    "lines": lambda text, words: np.log1p(text.count("\n")),
    "numbers": lambda text, words: np.log1p(len(NUMBER.findall(text))),
    "largest number": lambda text, words: np.log1p(max(map(_value, NUMBER.findall(text)), default=0.0)),
    "word length": lambda text, words: sum(map(len, words)) / max(1, len(words)),
    "long words": lambda text, words: sum(len(word) > 9 for word in words) / max(1, len(words)),
    "distinct words": lambda text, words: len({w.casefold() for w in words}) / max(1, len(words)),
    "capitals": lambda text, words: sum(map(str.isupper, text)) / max(1, len(text)),
    "digits": lambda text, words: sum(map(str.isdigit, text)) / max(1, len(text)),
    "punctuation": lambda text, words: (
        sum(not (c.isalnum() or c.isspace()) for c in text) / max(1, len(text))
    ),
    "beyond ASCII": lambda text, words: sum(ord(c) > 127 for c in text) / max(1, len(text)),
    "ideographs": lambda text, words: sum("\u3040" <= c <= "\u9fff" for c in text) / max(1, len(text)),
    "question marks": lambda text, words: np.log1p(text.count("?")),
    "ends with a question": lambda text, words: float(text.rstrip().endswith("?")),
    "ends with a colon": lambda text, words: float(text.rstrip().endswith(":")),
    "begins with a wh-word": lambda text, words: float(
        bool(words) and words[0].casefold() in {"what", "who", "where", "when", "which", "why", "how"}
    ),
    "quotations": lambda text, words: np.log1p(text.count('"') + text.count("“")),
    "brackets": lambda text, words: np.log1p(sum(map(text.count, "([{"))),
    "backslashes": lambda text, words: np.log1p(text.count("\\")),
    "blanks": lambda text, words: float("___" in text),
}
"""Complexity and syntax."""

NAMES: tuple[str, ...] = (
    *(f"task: {name}" for name in TASKS),
    *(f"reasoning: {name}" for name in REASONING),
    *SHAPES,
)
"""What each column is."""


def prompt_features(texts: Sequence[str]) -> NDArray[np.float64]:
    """The features of every text, shape (n_texts, len(NAMES)), not scaled."""
    found = np.empty((len(texts), len(NAMES)))
    for row, text in zip(found, texts, strict=True):
        words = WORD.findall(text)
        row[:] = [
            *(float(bool(rule.search(text))) for rule in TASKS.values()),
            *(np.log1p(sum(1 for _ in rule.finditer(text))) for rule in REASONING.values()),
            *(shape(text, words) for shape in SHAPES.values()),
        ]
    return found


def _value(number: str) -> float:
    # Digits alone, and few of them: no locale's comma misleads, no long number becomes infinite.
    return float(number.replace(",", "").partition(".")[0][:12] or 0)
