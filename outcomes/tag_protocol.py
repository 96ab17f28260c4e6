r"""The words of a language model that asks others by tags, as Router-R1 fixed them: pure text in, facts out.

    <think> … </think> <search>NAME:question</search> <information> … </information> … <answer> … </answer>

`broken_rule` says which rule of the format a whole transcript breaks; `reward` is the training signal:

    broken → −1;   wrong → 0;   right → (1 − a)·1 + a·R_cost,   R_cost = 1 − clip((√raw − p₅)/(p₉₅ − p₅), 0, 1)

with raw = Σ completion tokens · price over the calls, and the percentiles those of the last 1000 (0.5 where they are
one). In F1 mode the F1 of the answer stands for right (1) and wrong (0).
"""

from __future__ import annotations

import re
import string
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

__all__ = [
    "CostScale",
    "Search",
    "blended",
    "broken_rule",
    "exact_match",
    "f1",
    "final_answer",
    "open_tag",
    "resolve",
    "reward",
    "search_of",
    "squad",
]

TAGS = ("think", "search", "information", "answer")
PLACEHOLDERS = frozenset(
    {"...", "…", "modelname", "llm-name", "your query", "query", "question", "sub-question"}
)
_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")


@dataclass(frozen=True, slots=True)
class Search:
    """A call: the `name` as written and the `question` put to it; '' where it is missing."""

    name: str
    question: str


def open_tag(text: str) -> str | None:
    """The tag that `text` leaves open at its end, or None."""
    found = None
    for match in _TAG.finditer(text):
        found = None if match.group(1) else match.group(2)
    return found


def search_of(span: str, pool: Sequence[str]) -> Search:
    """The call that a search span makes. A pool name at its head is taken whole, colons included; else the name ends at
    the first colon, and all after it is the question (the reference cuts that at the next colon)."""
    text = span.strip()
    for name in sorted(pool, key=len, reverse=True):
        if text.casefold().startswith(f"{name.casefold()}:"):
            return Search(name, text[len(name) + 1 :].strip())
    name, _, question = text.partition(":")
    return Search(name.strip(), question.strip())


def resolve(name: str, pool: Sequence[str]) -> str | None:
    """The pool's model that a written name means: the same but for case and punctuation, else the first that contains
    it or is contained in it; None for neither."""
    wanted = _plain(name)
    if not wanted:
        return None
    plain = [_plain(each) for each in pool]
    for found in (
        [each == wanted for each in plain],
        [wanted in each or each in wanted for each in plain],
    ):
        if any(found):
            return pool[found.index(True)]
    return None


def final_answer(text: str) -> str | None:
    """The last whole answer span, or None."""
    spans = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return spans[-1].strip() if spans else None


def broken_rule(text: str, pool: Sequence[str]) -> str | None:
    """The first rule that a whole transcript breaks, in words; None when it keeps all."""
    inside, spans = None, []
    start = 0
    for match in _TAG.finditer(text):
        closing, tag = bool(match.group(1)), match.group(2)
        if closing != (inside is not None) or (closing and inside != tag):
            return f"the tag {match.group()} is nested or not balanced"
        if closing:
            spans.append((tag, text[start : match.start()].strip()))
        inside, start = None if closing else tag, match.end()
    if inside is not None:
        return f"the tag <{inside}> is never closed"
    of = {tag: [span for found, span in spans if found == tag] for tag in TAGS}
    stripped = text.strip()
    if not (stripped.startswith("<think>") and stripped.endswith("</answer>")):
        return "it starts with <think> and ends with </answer>"
    if not of["think"] or any(span in ("", "...") for span in of["think"]):
        return "there is a thought, and none is empty"
    if len(of["answer"]) != 1:
        return "there is exactly one answer"
    if len(of["search"]) != len(of["information"]):
        return "every search has its information"
    for span in of["search"]:
        if (broken := _broken_search(span, pool)) is not None:
            return broken
    return None


def _broken_search(span: str, pool: Sequence[str]) -> str | None:
    call = search_of(span, pool)
    own = call.name.count(":") if call.name in pool else 0
    if span.count(":") - own != 1:
        return "a search has exactly one colon"
    if not call.question or call.question.casefold() in PLACEHOLDERS or call.name.casefold() in PLACEHOLDERS:
        return "a search asks something, and no placeholder"
    if resolve(call.name, pool) is None:
        return "a search names a model of the pool"
    if call.name.casefold() in call.question.casefold():
        return "a model's name is not repeated in the question"
    return None


def squad(text: str) -> str:
    """An answer as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """1 when the answer is one of `golds` up to `squad`, else 0."""
    return float(squad(answer) in {squad(gold) for gold in golds})


def f1(answer: str, golds: Iterable[str]) -> float:
    """The best F1 of the answer's words with those of one of `golds`."""
    said = Counter(squad(answer).split())
    best = 0.0
    for gold in golds:
        wanted = Counter(squad(gold).split())
        shared = sum((said & wanted).values())
        if shared:
            best = max(best, 2 * shared / (sum(said.values()) + sum(wanted.values())))
    return best


@dataclass(slots=True)
class CostScale:
    """R_cost from what calls cost, against the last `window` of them."""

    window: int = 1000
    seen: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = deque(maxlen=self.window)

    def see(self, raw: float) -> None:
        self.seen.append(float(np.sqrt(raw)))

    def reward(self, raw: float) -> float:
        """In [0, 1]; 1 is cheap. `raw` in any unit of money, the same for all."""
        if not self.seen:
            return 0.5
        low, high = np.quantile(self.seen, (0.05, 0.95))
        return 0.5 if high <= low else float(1 - np.clip((np.sqrt(raw) - low) / (high - low), 0, 1))


def reward(
    text: str,
    pool: Sequence[str],
    golds: Sequence[str],
    *,
    r_cost: float = 0.5,
    cost_weight: float = 0.0,
    mode: Literal["em", "f1"] = "em",
) -> float:
    """The reward of a whole transcript. `cost_weight` is the paper's a."""
    if broken_rule(text, pool) is not None:
        return -1.0
    right = (exact_match if mode == "em" else f1)(final_answer(text) or "", golds)
    return blended(right, r_cost, cost_weight)


def blended(right: float, r_cost: float, cost_weight: float) -> float:
    """The reward of a well-formed transcript whose answer is `right` in [0, 1]: only right answers earn by cost."""
    return (1 - cost_weight) * right + cost_weight * r_cost if right > 0 else 0.0


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
