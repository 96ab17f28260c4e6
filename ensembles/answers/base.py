"""What an answer ensemble is made of: an `Aggregator` that says whom to ask, and merges what came back.

Laws, asserted for every registered aggregator in `tests/contracts/`:

- `slots` and `combine` are pure, and `combine` works on any non-empty subset of the slots' answers.
- One candidate, or unanimity, is returned. Permuting candidates permutes their scores and changes no
  undisputed winner.
- Ties are stable: the first of the best. Abstention is not a class: a candidate without a key never beats
  one with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from protocol.chat import ChatRequest

__all__ = ["Aggregator", "Candidate", "Combined", "Slot"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One call to make: `member` is asked the caller's request with the body fields in `fields` set."""

    member: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that came back: its `text`, and its tool calls as a canonical JSON string where it made
    any."""

    member: str
    text: str
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Combined:
    """The decision. `index`: the candidate chosen; `scores`: one a candidate, higher is better, None
    abstained; `keys`: the canonical answer each candidate was read as; `votes`: weight a key; `by`: what
    was compared."""

    index: int
    scores: tuple[float | None, ...]
    keys: tuple[str | None, ...]
    votes: Mapping[str, float]
    by: str


class Aggregator(Protocol):
    """Asks several, returns one of their answers."""

    def slots(self, request: ChatRequest) -> Sequence[Slot]:
        """The calls to make, at least one. Raises `BadRequest` for what the method cannot honour."""
        ...

    def combine(self, request: ChatRequest, candidates: Sequence[Candidate]) -> Combined:
        """Merge at least one candidate, in slot order."""
        ...
