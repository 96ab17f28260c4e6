"""What is asked of the engine host and what it answers: plain values that cross between asyncio and the step
loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.errors import ChorusError

__all__ = [
    "Begun",
    "End",
    "Event",
    "Failure",
    "Generation",
    "LeftOut",
    "MemberUsage",
    "Piece",
    "Sampling",
    "Sink",
    "TokenLogprob",
    "Written",
]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose and when to stop. `max_tokens` counts the main member's; None runs to the end of the
    context.

    `stops` are byte strings that end the answer and are not shown; `before` is what the prompt ends with,
    should a stop string begin there. `top_logprobs` None: no log-probabilities; k: of the chosen token and
    the k most likely ones. `extra` has further sampling fields by the names of vLLM's `SamplingParams`. `grammar`, of
    `GrammarCompiler`, is what the text has to be."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[bytes, ...] = ()
    before: bytes = b""
    top_logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    grammar: Any = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer to make. `model` is a plain model or a fusion; `prompts` has the token ids for each of its
    members, and `question` what the caller asked, in plain words. `weights` take the place of the fusion's, one a
    member, ≥ 0, not all 0. `deadline`: until when the caller waits, on the clock `time.monotonic`."""

    id: str
    model: str
    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    weights: tuple[float, ...] | None = None
    question: str = ""
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token's bytes and natural-log probability at temperature 1, with the most likely ones, best
    first."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class MemberUsage:
    """Tokens one member spent, an end-of-text token it chose included; `cached_tokens` of its prompt were read
    from the prefix cache."""

    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became visible, and the log-probabilities of the tokens that begin in it."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """One member's part of a text in which each part is one's alone: its model, and the part's bytes."""

    model: str
    size: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A member without a part in the answer from byte `at` of its text on: it failed, or the host was busy."""

    model: str
    why: Literal["failed", "load"]
    at: int = 0


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer begins with fewer members than its fusion has. Comes before everything else, or not at all."""

    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete: `reason` is "stop" or "length"; `members` in the order of the config, the main
    one's tokens being what `max_tokens` counted (in spans: those of the text; drafts that were not taken up and
    the reading of other members' are spent beside). `spans` tells who wrote what, in order, where that can be
    told; `left_out` who had no part."""

    reason: str
    members: tuple[MemberUsage, ...]
    spans: tuple[Written, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer will not be completed."""

    error: ChorusError


Event = Begun | Piece | End | Failure
Sink = Callable[[Event], None]
"""Called from the step loop's thread, once an event; after `End` or `Failure` never again."""
