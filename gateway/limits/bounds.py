"""The most a request can cost, known before the first of its calls is made.

Every token spells at least one byte, so a prompt has at most as many tokens as its body has bytes of JSON as it came
(whose quotes and field names make up for the words a chat template adds), and no model reads more than its context. An
answer has at most `max_tokens` tokens; where the caller does not say, the model's cap, which is then sent along.
What a strategy may ask adds up over its fan-out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ensembles.options import configured
from ensembles.spans.base import most_spent
from protocol.methods import FUSIONS, find_method
from protocol.settings import Fusion, ModelSettings, Settings, Talk
from protocol.value import value

__all__ = ["NANO", "Bound", "Bounds", "nano"]

NANO = 1_000_000_000
"""Nanodollars in a US dollar: the unit all money is counted in, in whole numbers."""
REFERENCE_TOKENS = 40_000
"""The most that one image, sound or file costs which a message only names, by a URL or an id."""
STORED = frozenset({"previous_response_id", "conversation"})
STORED_TOKENS = 1_000_000
"""What a conversation that the backend keeps may have, unless the model's context is known."""
WORDS = ("text", "refusal", "input_text", "output_text", "tool_use", "tool_result", "thinking")
"""Parts of a message that are words, all of them in the body."""
FUSED_FACTOR = 8
"""A fusion's main model may write this many bytes with one token, and another member as many tokens for them."""
TOLD_BYTES = 1_024
"""What a talk adds to a request of its own words."""
MANIFOLD = frozenset({"n", "best_of", "prompt"})
"""What may ask for several answers."""
LIMITS = frozenset({"max_completion_tokens", "max_tokens", "max_output_tokens"})
"""Where the surfaces say how long an answer may be."""


def nano(usd: float) -> int:
    """US dollars in nanodollars."""
    return round(usd * NANO)


@value
class Bound:
    """The most one request can use: nanodollars, and tokens read and written. `sure`: its calls keep to that by
    themselves, since only the model named is asked, or a fallback of it, for what the bound was found by."""

    nanodollars: int
    tokens: int
    sure: bool = False


@value
class _Asked:
    """What of a request its cost depends on."""

    size: int
    references: int
    most: int | None
    answers: int
    writes: bool


@dataclass(frozen=True, slots=True)
class _Rates:
    """What of a model its cost depends on: US dollars per token, tokens, and how often a call can be made of which both
    attempts cost. `written`: how long an answer may be where nobody says; `engine`: how long with its prompt."""

    read_usd: float
    written_usd: float
    context: int | None
    written: int
    engine: int | None
    embeds: bool
    attempts: int

    def usd(self, asked: _Asked, factor: int = 1, *, again: bool = False) -> float:
        """What one call costs at most."""
        read = asked.size + asked.references
        if self.context is not None and asked.writes:
            read = min(read, self.context)
        usd = read * self.read_usd
        if self.engine is not None:
            usd *= max(1, asked.answers)
        if not asked.writes or self.embeds:
            return usd
        written = (asked.most or self.written) * factor
        if self.engine is not None:
            written = min(written, self.engine * (factor if again else 1))
        return self.attempts * (usd + written * asked.answers * self.written_usd)


class Bounds:
    """Bounds of everything that `settings` can answer with. `pools` gives, for a route, the names it may choose
    among."""

    def __init__(self, settings: Settings, pools: Mapping[str, tuple[str, ...]]) -> None:
        self._strategies, self._pools = settings.strategies, pools
        self._default = settings.limits.default_max_tokens
        self._max_depth = settings.server.max_depth
        self._drafting = {
            name: most
            for name, strategy in self._strategies.items()
            if strategy.fuse and (most := _drafted(name, strategy.fuse)) is not None
        }
        """Fusion whose members draft → tokens each may spend for one that the answer may have."""
        self.caps = {
            name: cap for name, model in settings.models.items() if (cap := self._cap(model)) is not None
        }
        """Model → the `max_tokens` that is sent where a request under a budget names none."""
        self._rates = {
            name: rates
            for name, model in settings.models.items()
            if (rates := self._rates_of(model)) is not None
        }
        self._chains = {
            name: tuple(self._rates[each] for each in (name, *model.fallbacks) if each in self._rates)
            for name, model in settings.models.items()
        }
        """Model → its rates and those of the models that stand in for it."""

    def of(self, name: str, body: Mapping[str, Any], size: int, *, writes: bool = True) -> Bound:
        """The bound of a request for `name` with `body`, which came as `size` bytes; it is empty where no JSON came.
        Embeddings are not answered in `writes`. A name that does not exist costs nothing."""
        asked = _asked(body, size, writes)
        # Of tokens an estimate, by four bytes each, will do: a limit on them is corrected by what was used.
        tokens = size // 4 + asked.references + (asked.most or 0) * asked.answers
        sure = bool(body) and name not in self._strategies
        return Bound(math.ceil(self._usd(name, asked) * NANO), tokens, sure)

    def _usd(self, name: str, asked: _Asked, depth: int = 0) -> float:
        """What `name` costs at most: a model, with the models that stand in for it, or all that a strategy may ask."""
        if depth > self._max_depth:
            return 0.0  # a run goes no deeper
        deeper = depth + 1
        strategy = self._strategies.get(name)
        if strategy is None:
            usd = 0.0
            for rates in self._chains.get(name, ()):
                usd += rates.usd(asked)
            return usd
        if strategy.route:
            pool = {strategy.route.default, *self._pools.get(name, ())}
            dearest = max(self._usd(each, asked, deeper) for each in pool)
            embedder = strategy.route.embedder
            return dearest + (self._model_usd(embedder, asked) if embedder else 0.0)
        if strategy.cascade:
            return sum(self._usd(stage, asked, deeper) for stage in strategy.cascade.stages)
        if strategy.aggregate:
            members = strategy.aggregate.members
            return strategy.aggregate.samples * sum(self._usd(member, asked, deeper) for member in members)
        if strategy.talk:
            return self._talk_usd(strategy.talk, asked, deeper)
        members = tuple(strategy.fuse.members) if strategy.fuse else ()
        drafts = name in self._drafting  # those that are not kept fill no context
        factor = self._drafting.get(name, FUSED_FACTOR)
        return sum(self._model_usd(member, asked, factor, again=drafts) for member in members)

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

    def _model_usd(self, name: str, asked: _Asked, factor: int = 1, *, again: bool = False) -> float:
        """What one call to the model `name` costs at most; nothing without a price."""
        rates = self._rates.get(name)
        return 0.0 if rates is None else rates.usd(asked, factor, again=again)

    def _rates_of(self, model: ModelSettings) -> _Rates | None:
        if model.price is None:
            return None
        price, cap = model.price.price, self._cap(model)
        engine = model.engine.max_model_len if model.engine else None
        context = engine or model.context_length
        return _Rates(
            price.dearest_input_usd,
            price.dearest_output_usd,
            context,
            (context if cap is None else cap) or self._default,
            engine,
            model.embedder is not None,
            2 if model.hedge else 1,
        )

    def _cap(self, model: ModelSettings) -> int | None:
        """The `max_tokens` to send for a model where the caller names none. Engines need none: what they write ends
        with their context."""
        if model.embedder or (model.engine and model.max_output_tokens is None):
            return None
        return model.max_output_tokens or min(self._default, model.context_length or self._default)


def _asked(body: Mapping[str, Any], size: int, writes: bool) -> _Asked:
    most = 0
    for name in LIMITS.intersection(body):
        told = body[name]
        if isinstance(told, int) and told > most:
            most = told
    answers = 1 if MANIFOLD.isdisjoint(body) else _answers(body)
    return _Asked(size, _references(body), most or None, answers, writes)


def _answers(body: Mapping[str, Any]) -> int:
    """How many answers are written, those that are thrown away included."""
    answers, prompt = body.get("n") or 1, body.get("prompt")
    if isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
        answers *= max(1, len(prompt))  # each text is answered
    return max(answers, body.get("best_of") or 1)


def _drafted(name: str, fuse: Fusion) -> int | None:
    """Tokens that each member of a fusion that drafts may spend for one that the answer may have; None for others."""
    method = find_method(fuse.method, *FUSIONS)
    if method.contract not in ("span", "step"):
        return None
    made = configured(method, fuse.options, f"strategies.{name}.fuse.options")
    return most_spent(len(fuse.members), made)


def _references(body: Mapping[str, Any]) -> int:
    """Tokens of what messages only name."""
    named = 0
    if not STORED.isdisjoint(body) and any(body.get(field) for field in STORED):
        named = STORED_TOKENS
    messages = body.get("messages") or body.get("input") or ()
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict) or not isinstance(content := message.get("content"), list):
            continue
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in WORDS:
                named += REFERENCE_TOKENS
    return named
