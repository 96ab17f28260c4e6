"""The settings' models, and the fusions beside them, as `Model`s by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.balancer import Seat
from backends.breaker import Breaker
from backends.bucket import Bucket
from backends.hosted.ids import deployment_id
from backends.model import Model
from backends.openai_http import Deployment
from backends.retrying import Retrying
from protocol.settings import Deployment as DeploymentSettings
from protocol.settings import Endpoint, HostedModel, ModelSettings, OpenAIModel, Settings

__all__ = ["Sockets", "make_models"]

SERVED: Mapping[str, frozenset[Endpoint]] = {
    "engines": frozenset({"chat", "completions"}),
    "embedder": frozenset({"embeddings"}),
    "hosted": frozenset({"chat", "completions", "embeddings"}),
}
"""What our own processes serve."""

NEVER = 1 << 62
"""Failures after which our own processes are left alone: the supervisor restarts them, asking costs nothing, and
their return should be noticed at once."""

Sockets = Mapping[str, Path]
"""Our own processes ("engines", "embedder", "hosted") → the Unix socket each serves on."""


def make_models(settings: Settings, sockets: Sockets) -> dict[str, Model]:
    """One `Model` for each configured model and fusion. Nothing is connected before it is asked.

    The engine host serves its engine models and fusions, and the embedder process its models, under their own
    names. Limits hold over all workers: each gets an equal share.
    """
    resilience, workers = settings.resilience, settings.server.workers
    prices = {name: model.price.price for name, model in settings.models.items() if model.price}

    def retrying() -> Retrying:
        return Retrying(resilience.retries, resilience.backoff_s, resilience.retry_budget)

    def seat(upstream: DeploymentSettings) -> Seat:
        slots = upstream.max_concurrent
        return Seat(
            upstream.weight,
            Breaker(resilience.breaker_failures, resilience.cooldown_s),
            None if slots is None else max(1, slots // workers),
            _per_minute(upstream.rpm, workers),
            _per_minute(upstream.tpm, workers),
        )

    def local(name: str, process: str, section: ModelSettings, members: tuple[str, ...] = ()) -> Model:
        patience_s = settings.server.deadline_s + 1  # the caller's deadline decides, not a clock of ours
        upstream = OpenAIModel(
            base_url=f"unix://{sockets[process]}",
            model=name,
            timeout_s=patience_s,
            first_token_timeout_s=patience_s,
            idle_timeout_s=patience_s,
            endpoints=SERVED[process],
        )
        return Model(
            name,
            [Deployment(name, upstream)],
            members=members,
            prices=prices,
            local=process,
            seats=[Seat(breaker=Breaker(failures=NEVER))],
            retrying=retrying(),
            fallbacks=() if members else section.fallbacks,
            output_cap=section.output_cap,
        )

    def hosted(name: str, index: int, upstream: HostedModel) -> OpenAIModel:
        """A provider with a protocol of its own, as the OpenAI-compatible backend that the hosted process makes it."""
        return OpenAIModel(
            base_url=f"unix://{sockets['hosted']}",
            model=deployment_id(name, index),
            endpoints=SERVED["hosted"],
            **upstream.model_dump(include=set(DeploymentSettings.model_fields)),
        )

    def model(name: str, section: ModelSettings) -> Model:
        if section.engine:
            return local(name, "engines", section)
        if section.embedder:
            return local(name, "embedder", section)
        upstreams = [
            *(section.openai or ()),
            *(hosted(name, i, each) for i, each in enumerate(section.hosted or ())),
        ]
        return Model(
            name,
            [Deployment(name, upstream) for upstream in upstreams],
            prices=prices,
            seats=[seat(upstream) for upstream in section.deployments],
            rule=section.balance,
            retrying=retrying(),
            hedge=section.hedge,
            fallbacks=section.fallbacks,
            output_cap=section.output_cap,
        )

    models = {name: model(name, section) for name, section in settings.models.items()}
    for name, strategy in settings.strategies.items():
        if strategy.fuse:
            main = strategy.fuse.main or next(iter(strategy.fuse.members))
            models[name] = local(name, "engines", settings.models[main], tuple(strategy.fuse.members))
    return models


def _per_minute(limit: int | None, workers: int) -> Bucket | None:
    """One worker's share of a limit per minute."""
    return None if limit is None else Bucket(max(1.0, limit / workers), limit / workers / 60)
