"""`Routed`: the strategy that picks one model beforehand and lets it answer."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from outcomes.artefact import Manifest, load_router
from outcomes.assignment import Knob, utilities, utility_choice
from protocol.chat import ChatRequest, human_ask, human_asks
from protocol.errors import BadRequest, ChorusError, MethodError
from protocol.methods import find_method
from protocol.routing import Estimate, Policy, Slow
from protocol.run import Event, Run
from protocol.settings import Routing, RuleSettings
from routers.estimating import Estimator, Remembered
from routers.policy import Pacing, configured

__all__ = ["Routed", "load_routed"]

log = logging.getLogger("chorus.routing")

TURNS = 8
"""Turns of a conversation that are looked at to see which model has it."""


def load_routed(settings: Routing, *, answering: Collection[str], embedder_id: str | None) -> Routed:
    """The strategy that a config's `route` section describes. `answering`: names of all models and
    strategies that answer; `embedder_id`: of the embedder the section names, if it does. Raises `ArtefactMismatch`,
    `MethodError`, `SettingsError`.
    """
    method = find_method(settings.method, "router")
    if "embedding" in method.needs and settings.embedder is None:
        raise MethodError(f"{method.id} routes by embeddings; name the embedder it was trained with.")
    manifest, router = load_router(settings.artefact, models=answering, embedder=embedder_id)
    if manifest.method != method.id:
        raise MethodError(
            f"{settings.artefact} holds an artefact of {manifest.method}, the config says {method.id}."
        )
    if manifest.knob is None:
        raise MethodError(
            f"{settings.artefact} has no calibrated quality knob; write it with `chorus train`."
        )
    pair = _pair(settings)
    budget = settings.policy.budget if settings.policy else None
    _require_known((*settings.models, *pair), manifest, settings)
    return Routed(
        Estimator(
            router,
            settings.embedder if "embedding" in method.needs else None,
            deadline_s=settings.embed_deadline_ms / 1000,
            threaded=isinstance(router, Slow) and router.slow,
        ),
        Knob.parse(manifest.knob),
        default=settings.default,
        models=pair or settings.models or manifest.models,
        quality=settings.quality,
        policy=settings.policy,
        switch_margin=settings.switch_margin,
        explore=settings.explore,
        pacing=Pacing(budget.usd_per_request, budget.window, settings.quality) if budget else None,
        label=f"{manifest.method}@{manifest.version}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Who answers and why. `propensity`: how likely this choice was, where estimates decided; `estimates` of every
    candidate, as the trace tells them, and the highest of their costs."""

    model: str
    reason: str
    propensity: float | None = None
    estimates: Mapping[str, Mapping[str, float | None]] | None = None
    dearest_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """`policy` as a rule that can be told; `lam` where it is the knob's."""

    policy: Policy | None
    told: str
    lam: float = 0.0


@dataclass(frozen=True, slots=True)
class Routed:
    """Estimate every model for the ask, choose by a rule, relay the chosen one's answer untouched.

    Of `models` only those are candidates that lack nothing the request needs. `default` answers when there is
    nothing to decide on, or estimates do not come in time: routing may help an answer, never prevent one. The rule is
    the quality knob's, or `policy`.

    A conversation keeps its model unless another one's utility is higher by `switch_margin`. Which model it has
    is not remembered anywhere: it is read off the earlier asks, which the request carries, by the same rule.

    A share `explore` of requests goes to a candidate drawn at random, so that what the others would have answered can
    be learnt from the ledger: each decision is noted with its `propensity`. `label` names the artefact in traces.

    `pacing` moves the knob to hold an average cost, by what each request answered here did cost, whoever answered it
    (one that failed and did cost nothing does not count); what other strategies spend on the same request at the same
    time is counted with it.
    """

    estimator: Estimator
    knob: Knob
    default: str
    models: tuple[str, ...]
    quality: float = 0.5
    policy: RuleSettings | None = None
    switch_margin: float = 0.0
    explore: float = 0.0
    pacing: Pacing | None = None
    label: str = ""
    rng: random.Random = field(default_factory=random.Random)
    _choices: Remembered[Any, _Choice] = field(default_factory=Remembered)
    """What was chosen among whom, for which asks, by which rule: with the same estimates it is chosen again."""
    _rules: Remembered[tuple[float, float | None], _Rule] = field(default_factory=Remembered)
    """By the request's knobs, quality and threshold."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        spent_usd = run.trace.cost_usd
        chosen = await self.decide(request, run)
        try:
            async with aclosing(cast(Any, run.relay(chosen, request))) as events:
                async for event in events:
                    yield event
        finally:
            if self.pacing is not None:
                usd = run.trace.cost_usd - spent_usd
                if usd or any(call.outcome == "ok" for call in run.trace.calls):
                    self.pacing.spent(usd)

    async def decide(self, request: ChatRequest, run: Run) -> str:
        """Who shall answer; why is noted in the trace. Raises `BadRequest` for a knob that it does not have."""
        options = request.options
        quality = options.quality
        if quality is None:
            quality = self.quality if self.pacing is None else self.pacing.level
        knobs = quality, options.threshold
        if (rule := self._rules.get(knobs)) is None:
            self._rules.put(knobs, rule := self._rule(request, quality))
        choice = await self._choose(request, run, rule)
        facts: dict[str, Any] = {"router": self.label, "chosen": choice.model, "reason": choice.reason}
        if rule.policy is None:
            facts["quality"] = quality
        if choice.propensity is not None:
            facts["propensity"] = choice.propensity
            if options.explain and (reasons := await self.estimator.reasons(human_ask(request), run)):
                facts["reasons"] = reasons
        if choice.estimates is not None:
            facts["estimates"] = choice.estimates
        run.trace.note(**facts)
        return choice.model

    async def _choose(self, request: ChatRequest, run: Run, rule: _Rule) -> _Choice:
        default_lacks, *lacking = run.lacks((self.default, *self.models), request)
        able = (
            self.models
            if not any(lacking)
            else tuple(name for name, lack in zip(self.models, lacking, strict=True) if lack is None)
        )
        lack = next(filter(None, lacking), "")
        if lack:
            pairs = zip(self.models, lacking, strict=True)
            run.trace.note(left_out={name: wanted for name, wanted in pairs if wanted})
        if not able:
            return _Choice(model=self.default, reason=f"default: no candidate has {lack}")
        fallback = self.default if default_lacks is None else able[0]
        turns = TURNS if self.switch_margin and rule.policy is None else 1
        asks = human_asks(request, most=turns)
        if not asks:
            return _Choice(model=fallback, reason="default: the request has no text")
        digests = self.estimator.digests(asks)
        memory = (digests, able, rule)
        lasting = not self.explore and self.pacing is None
        if lasting and (known := self._choices.get(memory)) and known.dearest_usd <= run.remaining_usd:
            return known
        try:
            estimate = await self.estimator.of(asks, digests, run)
        except TimeoutError:
            late = f"default: no embedding or estimate within {self.estimator.deadline_s:g} s"
            return _Choice(model=fallback, reason=late)
        except ChorusError as error:
            return _Choice(model=fallback, reason=f"default: {error.code or error.type}")
        except Exception:
            log.exception("%s could not estimate", self.label)
            return _Choice(model=fallback, reason="default: internal_error")
        candidates, within = _affordable(_among(estimate, able), run.remaining_usd)
        told = f"of those with {lack}, {within}" if lack else within
        choice = self._drawn(candidates, *self._ruled(candidates, rule), told)
        if lasting and not within:
            self._choices.put(memory, choice)
        return choice

    def _ruled(self, candidates: Estimate, rule: _Rule) -> tuple[int, str]:
        """The column of the model that the rule picks for the last ask, and why."""
        if len(candidates.models) == 1:
            return 0, "the only candidate"
        if rule.policy is not None:
            return int(rule.policy.choose(_last(candidates))[0]), rule.told
        best = utility_choice(candidates, rule.lam)
        if len(best) == 1 or math.isinf(rule.lam):
            return int(best[-1]), rule.told
        utility = utilities(candidates, rule.lam)
        held = best[0]
        for turn, wanted in enumerate(best):
            if utility[turn, wanted] > utility[turn, held] + self.switch_margin:
                held = wanted
        kept = "" if held == best[-1] else f", keeping the conversation's model for {self.switch_margin:g}"
        return int(held), rule.told + kept

    def _drawn(self, candidates: Estimate, ruled: int, told: str, where: str) -> _Choice:
        """What the rule picked, or now and then any candidate."""
        each = self.explore / len(candidates.models)
        chosen = ruled
        if self.explore and self.rng.random() < self.explore:
            chosen, told = self.rng.randrange(len(candidates.models)), "explored"
        likely = each + (1 - self.explore if chosen == ruled else 0.0)
        return _Choice(
            model=candidates.models[chosen],
            reason=where + told,
            propensity=likely,
            estimates=_told_estimates(candidates),
            dearest_usd=_dearest(candidates),
        )

    def _rule(self, request: ChatRequest, quality: float) -> _Rule:
        """The rule of the config, moved by the request's knobs. Raises `BadRequest`."""
        options, settings = request.options, self.policy
        threshold = settings.threshold if settings else None
        if options.threshold is not None and threshold is None:
            raise BadRequest(
                f"{request.model!r} has no threshold; `chorus.threshold` is for routers with `policy.threshold`.",
                param="chorus.threshold",
            )
        if settings is not None and settings.budget is None:
            if threshold is not None and options.threshold is not None:
                asked = threshold.model_copy(update={"alpha": options.threshold})
                settings = RuleSettings(threshold=asked)
            policy = configured(settings)
            return _Rule(policy=policy, told=policy.told)
        lam = self.knob.lam(quality)
        return _Rule(policy=None, told=_told(lam), lam=lam)


def _pair(settings: Routing) -> tuple[str, ...]:
    """The two models that a threshold decides between; none where the rule is another."""
    threshold = settings.policy.threshold if settings.policy else None
    return (threshold.strong, threshold.weak) if threshold else ()


def _require_known(names: Collection[str], manifest: Manifest, settings: Routing) -> None:
    """Raises `MethodError` where the section names a model that the artefact knows nothing of."""
    for name in names:
        if name not in manifest.models:
            raise MethodError(
                f"{settings.artefact} was trained for {', '.join(manifest.models)}; {name!r} is not among them."
            )


def _among(estimate: Estimate, names: Sequence[str]) -> Estimate:
    """The columns of `names`."""
    kept = [i for i, name in enumerate(estimate.models) if name in names]
    if len(kept) == len(estimate.models):
        return estimate
    models = tuple(estimate.models[i] for i in kept)
    return Estimate(models, estimate.quality[:, kept], estimate.cost_usd[:, kept])


def _last(estimate: Estimate) -> Estimate:
    """The row of the last ask."""
    return replace(estimate, quality=estimate.quality[-1:], cost_usd=estimate.cost_usd[-1:])


def _affordable(estimate: Estimate, budget_usd: float) -> tuple[Estimate, str]:
    """The estimate without the models that would likely break the budget; all of them when none would fit,
    for the budget itself is enforced elsewhere and a routed guess should not refuse a request."""
    fits = ~(estimate.cost_usd[-1] > budget_usd)
    if fits.all() or not fits.any():
        return estimate, ""
    names = [name for name, fit in zip(estimate.models, fits, strict=True) if fit]
    return _among(estimate, names), "within budget, "


def _told(lam: float) -> str:
    return (
        "best quality" if lam == 0 else "cheapest" if math.isinf(lam) else f"highest quality − {lam:.4g}·cost"
    )


def _told_estimates(estimate: Estimate) -> dict[str, dict[str, float | None]]:
    """The last ask's estimates, a row a model, as JSON values (unknown ones null)."""
    rows = zip(estimate.models, estimate.quality[-1].tolist(), estimate.cost_usd[-1].tolist(), strict=True)
    return {name: {"quality": _known(quality), "cost_usd": _known(cost)} for name, quality, cost in rows}


def _dearest(estimate: Estimate) -> float:
    """What the dearest candidate would cost for the last ask, in US dollars."""
    return max((cost for cost in estimate.cost_usd[-1].tolist() if not math.isnan(cost)), default=0.0)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
