"""The most a request can cost, known before the first of its calls is made.

Every token spells at least one byte, so a prompt has at most as many tokens as its body has bytes as JSON (whose
quotes and field names make up for the words a chat template adds), and no model reads more than its context. An
answer has at most `max_tokens` tokens; where the caller does not say, the model's cap, which is then sent along.
What a strategy may ask adds up over its fan-out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ensembles.spans.base import most_spent
from protocol.methods import find_method
from protocol.settings import ModelSettings, Settings, Talk

__all__ = ["NANO", "Bound", "Bounds", "nano"]

NANO = 1_000_000_000
"""Nanodollars in a US dollar: the unit all money is counted in, in whole numbers."""
REFERENCE_TOKENS = 40_000
"""The most that one image, sound or file costs which a message only names, by a URL or an id."""
STORED = ("previous_response_id", "conversation")
STORED_TOKENS = 1_000_000
"""What a conversation that the backend keeps may have, unless the model's context is known."""
WORDS = ("text", "refusal", "input_text", "output_text", "tool_use", "tool_result", "thinking")
"""Parts of a message that are words, all of them in the body."""
FUSED_FACTOR = 8
"""A fusion's main model may write this many bytes with one token, and another member as many tokens for them."""
TOLD_BYTES = 1_024
"""What a talk adds to a request of its own words."""
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Where the surfaces say how long an answer may be."""


def nano(usd: float) -> int:
    """US dollars in nanodollars."""
    return round(usd * NANO)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most one request can use: nanodollars, and tokens read and written."""

    nanodollars: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _Asked:
    """What of a request its cost depends on."""

    size: int
    references: int
    most: int | None
    answers: int
    writes: bool


class Bounds:
    """Bounds of everything that `settings` can answer with. `pools` gives, for a route, the names it may choose
    among."""

    def __init__(self, settings: Settings, pools: Mapping[str, tuple[str, ...]]) -> None:
        self._models, self._strategies = settings.models, settings.strategies
        self._default, self._pools = settings.limits.default_max_tokens, pools
        self._max_depth = settings.server.max_depth
        self._in_spans = {
            name
            for name, strategy in self._strategies.items()
            if strategy.fuse
            and find_method(strategy.fuse.method, "fusion", "search", "span").contract == "span"
        }
        self.caps = {
            name: cap for name, model in self._models.items() if (cap := self._cap(model)) is not None
        }
        """Model → the `max_tokens` that is sent where a request under a budget names none."""

    def of(self, name: str, body: Mapping[str, Any], *, writes: bool = True) -> Bound:
        """The bound of a request for `name` with `body`; embeddings are not answered in `writes`. A name that does not
        exist costs nothing."""
        asked = _asked(body, writes)
        # Of tokens an estimate, by four bytes each, will do: a limit on them is corrected by what was used.
        tokens = asked.size // 4 + asked.references + (asked.most or 0) * asked.answers
        return Bound(math.ceil(self._usd(name, asked) * NANO), tokens)

    def _usd(self, name: str, asked: _Asked, depth: int = 0) -> float:
        """What `name` costs at most: a model, with the models that stand in for it, or all that a strategy may ask."""
        if depth > self._max_depth:
            return 0.0  # a run goes no deeper
        deeper = depth + 1
        strategy = self._strategies.get(name)
        if strategy is None:
            model = self._models.get(name)
            names = (name, *model.fallbacks) if model else ()
            return sum(self._model_usd(self._models[each], asked) for each in names)
        if strategy.route:
            pool = {strategy.route.default, *self._pools.get(name, ())}
            dearest = max(self._usd(each, asked, deeper) for each in pool)
            embedder = strategy.route.embedder
            return dearest + (self._model_usd(self._models[embedder], asked) if embedder else 0.0)
        if strategy.cascade:
            return sum(self._usd(stage, asked, deeper) for stage in strategy.cascade.stages)
        if strategy.aggregate:
            members = strategy.aggregate.members
            return strategy.aggregate.samples * sum(self._usd(member, asked, deeper) for member in members)
        if strategy.talk:
            return self._talk_usd(strategy.talk, asked, deeper)
        members = tuple(strategy.fuse.members) if strategy.fuse else ()
        drafts = name in self._in_spans  # those that are not kept fill no context
        factor = most_spent(len(members)) if drafts else FUSED_FACTOR
        return sum(self._model_usd(self._models[m], asked, factor, again=drafts) for m in members)

    def _talk_usd(self, talk: Talk, asked: _Asked, depth: int) -> float:
        """Every member once; with a router, what its turns may read and write, and a call a turn."""
        if talk.router is None:
            told = replace(asked, size=asked.size + TOLD_BYTES)
            return sum(self._usd(member, told, depth) for member in talk.members)
        from routers.router_r1 import REPLY_TOKENS, TURN_TOKENS

        turns: int = talk.options.get("turns", 4)
        prompt = TOLD_BYTES + sum(len(name) + len(about.encode()) + 8 for name, about in talk.members.items())
        read = asked.size + prompt + turns * (TURN_TOKENS + REPLY_TOKENS + 64)
        writing = replace(asked, size=read, most=TURN_TOKENS, answers=1)
        replying = replace(asked, size=TURN_TOKENS + TOLD_BYTES, references=0, most=REPLY_TOKENS, answers=1)
        dearest = max(self._usd(member, replying, depth) for member in talk.members)
        spoken = (turns + 1) * self._usd(talk.router, writing, depth) + turns * dearest
        return max(spoken, self._usd(next(iter(talk.members)), asked, depth))

    def _model_usd(
        self, model: ModelSettings, asked: _Asked, factor: int = 1, *, again: bool = False
    ) -> float:
        if model.price is None:
            return 0.0
        price = model.price.price
        context = model.engine.max_model_len if model.engine else model.context_length
        read = asked.size + asked.references
        if context is not None and asked.writes:
            read = min(read, context)
        usd = read * price.dearest_input_usd * max(1, asked.answers if model.engine else 1)
        if not asked.writes or model.embedder:
            return usd
        cap = self._cap(model)
        written = (asked.most or (context if cap is None else cap) or self._default) * factor
        if model.engine:
            written = min(written, model.engine.max_model_len * (factor if again else 1))
        # Two attempts can both cost: a hedged call and the one it overtook.
        attempts = 2 if model.hedge else 1
        return attempts * (usd + written * asked.answers * price.dearest_output_usd)

    def _cap(self, model: ModelSettings) -> int | None:
        """The `max_tokens` to send for a model where the caller names none. Engines need none: what they write ends
        with their context."""
        if model.embedder or (model.engine and model.max_output_tokens is None):
            return None
        return model.max_output_tokens or min(self._default, model.context_length or self._default)


def _asked(body: Mapping[str, Any], writes: bool) -> _Asked:
    most = [value for field in LIMITS if isinstance(value := body.get(field), int) and value > 0]
    answers = body.get("n") or 1
    if isinstance(body.get("prompt"), list) and all(isinstance(text, str) for text in body["prompt"]):
        answers *= max(1, len(body["prompt"]))  # each text is answered
    answers = max(answers, body.get("best_of") or 1)
    size = len(orjson.dumps(body, default=str))
    return _Asked(size, _references(body), max(most) if most else None, answers, writes)


def _references(body: Mapping[str, Any]) -> int:
    """Tokens of what messages only name."""
    named = STORED_TOKENS if any(body.get(field) for field in STORED) else 0
    messages = body.get("messages") or body.get("input") or ()
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, Mapping) or part.get("type") not in WORDS:
                named += REFERENCE_TOKENS
    return named
