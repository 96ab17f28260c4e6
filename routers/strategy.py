"""`Routed`: the strategy that picks one model beforehand and lets it answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from outcomes.artefact import load_router
from outcomes.assignment import Knob, utility_choice
from outcomes.encoder_training import EncoderTraining
from protocol.chat import ChatRequest, human_ask
from protocol.errors import ChorusError, MethodError
from protocol.methods import find_method
from protocol.routing import Estimate, Queries, Router
from protocol.run import Event, Run
from protocol.settings import Routing

__all__ = ["Routed", "load_routed"]


def load_routed(settings: Routing, *, answering: Collection[str], embedder_id: str) -> Routed:
    """The strategy that a config's `route` section describes. `answering`: names of all models and
    strategies that answer; `embedder_id`: of the embedder the section names. Raises `ArtefactMismatch`,
    `MethodError`, `SettingsError`.
    """
    method = find_method(settings.method, "router")
    manifest, router = load_router(settings.artefact, models=answering, embedder=embedder_id)
    if manifest.method != method.id:
        raise MethodError(
            f"{settings.artefact} holds an artefact of {manifest.method}, the config says {method.id}."
        )
    if manifest.knob is None:
        raise MethodError(
            f"{settings.artefact} has no calibrated quality knob; write it with `chorus train`."
        )
    return Routed(
        router,
        Knob.parse(manifest.knob),
        default=settings.default,
        embedder=settings.embedder if "embedding" in method.needs else None,
        quality=settings.quality,
        embed_deadline_s=settings.embed_deadline_ms / 1000,
        label=f"{manifest.method}@{manifest.version}",
        threaded=isinstance(router, EncoderTraining),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Who answers and why."""

    model: str
    reason: str
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """Embed the ask, estimate every model, choose by the quality knob, relay the chosen one's answer
    untouched.

    `default` answers when there is nothing to decide on or the embedding does not come within
    `embed_deadline_s`
    seconds: routing may help an answer, never prevent one. `label` names the artefact in traces. `threaded`: the
    router itself reads texts with an encoder, tens of milliseconds that are not the event loop's; the same
    deadline holds for it.
    """

    router: Router
    knob: Knob
    default: str
    embedder: str | None
    quality: float = 0.5
    embed_deadline_s: float = 0.5
    label: str = ""
    threaded: bool = False

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        quality = self.quality if request.options.quality is None else request.options.quality
        choice = await self._choose(request, run, quality)
        run.trace.note(
            router=self.label,
            quality=quality,
            chosen=choice.model,
            reason=choice.reason,
            **_facts(choice.estimate),
        )
        async for event in run.relay(choice.model, request):
            yield event

    async def _choose(self, request: ChatRequest, run: Run, quality: float) -> _Choice:
        text = human_ask(request)
        if not text:
            return _Choice(model=self.default, reason="default: the request has no text")
        try:
            queries = await self._embedded(text, run)
            estimate = await self._estimated(queries, run)
        except TimeoutError:
            return _Choice(
                model=self.default,
                reason=f"default: no embedding or estimate within {self.embed_deadline_s:g} s",
            )
        except ChorusError as error:
            return _Choice(model=self.default, reason=f"default: {error.code or error.type}")
        lam = self.knob.lam(quality)
        affordable, reason = _affordable(estimate, run.remaining_usd)
        model = affordable.models[int(utility_choice(affordable, lam)[0])]
        return _Choice(model=model, reason=reason + _rule(lam), estimate=estimate)

    async def _embedded(self, text: str, run: Run) -> Queries:
        """The query with its embedding, if the router needs one. Raises `TimeoutError`, `ChorusError`."""
        if self.embedder is None:
            return Queries([text])
        async with asyncio.timeout(min(self.embed_deadline_s, run.remaining_s)):
            return Queries([text], await run.embed(self.embedder, [text]))

    async def _estimated(self, queries: Queries, run: Run) -> Estimate:
        """The router's estimate. Raises `TimeoutError`, `ChorusError`."""
        if not self.threaded:
            return self.router.estimate(queries)
        async with asyncio.timeout(min(self.embed_deadline_s, run.remaining_s)):
            return await asyncio.to_thread(self.router.estimate, queries)


def _affordable(estimate: Estimate, budget_usd: float) -> tuple[Estimate, str]:
    """The estimate without the models that would likely break the budget; all of them when none would fit,
    for the budget itself is enforced elsewhere and a routed guess should not refuse a request."""
    fits = ~(estimate.cost_usd[0] > budget_usd)
    if fits.all() or not fits.any():
        return estimate, ""
    kept = np.flatnonzero(fits)
    models = tuple(estimate.models[i] for i in kept)
    return Estimate(models, estimate.quality[:, kept], estimate.cost_usd[:, kept]), "within budget, "


def _rule(lam: float) -> str:
    return (
        "best quality" if lam == 0 else "cheapest" if math.isinf(lam) else f"highest quality − {lam:.4g}·cost"
    )


def _facts(estimate: Estimate | None) -> dict[str, Any]:
    """The estimates, a row a model, as JSON values (unknown ones null)."""
    if estimate is None:
        return {}
    rows = zip(estimate.models, estimate.quality[0].tolist(), estimate.cost_usd[0].tolist(), strict=True)
    return {
        "estimates": {
            name: {"quality": _known(quality), "cost_usd": _known(cost)} for name, quality, cost in rows
        }
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
