"""The settings' models, and the fusions beside them, as `Model`s by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.balancer import Account, Seat
from backends.breaker import Breaker
from backends.bucket import Bucket
from backends.hosted.ids import deployment_id
from backends.model import Model
from backends.openai_http import Deployment
from backends.outbound import Way, find_way
from backends.retrying import Retrying
from protocol.settings import Deployment as DeploymentSettings
from protocol.settings import Endpoint, ModelSettings, OpenAIModel, Settings

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


def make_models(
    settings: Settings, sockets: Sockets, before: Mapping[str, Model] | None = None
) -> dict[str, Model]:
    """One `Model` for each configured model and fusion. Nothing is connected before it is asked.

    The engine host serves its engine models and fusions, and the embedder process its models, under their own
    names. Limits hold over all workers: each gets an equal share.

    What did not change since `before` is taken over: a whole model, or of a changed one the deployments, with their
    connections, breakers, latencies and what is left of their limits. Raises `SettingsError` for files and URLs
    that cannot be used.
    """
    return _Registry(settings, sockets, before or {}).models()


class _Registry:
    def __init__(self, settings: Settings, sockets: Sockets, before: Mapping[str, Model]) -> None:
        self._settings, self._sockets, self._before = settings, sockets, before
        self._workers = settings.server.workers
        self._prices = {name: model.price.price for name, model in settings.models.items() if model.price}
        self._accounts: dict[object, Account] = {}
        self._taken: set[int] = set()
        """Ids of old seats that have found their place; of two deployments that are alike each has its own."""
        for model in before.values():
            for deployment, seat in zip(model.deployments, model.seats, strict=True):
                if seat.account is not None:
                    self._accounts.setdefault(_account(model.name, deployment.made_of[0]), seat.account)

    def models(self) -> dict[str, Model]:
        settings = self._settings
        models = {name: self._model(name, section) for name, section in settings.models.items()}
        for name, strategy in settings.strategies.items():
            if strategy.fuse:
                main = strategy.fuse.main or next(iter(strategy.fuse.members))
                members = tuple(strategy.fuse.members)
                models[name] = self._local(name, "engines", settings.models[main], members)
        return models

    def _model(self, name: str, section: ModelSettings) -> Model:
        if section.engine:
            return self._local(name, "engines", section)
        if section.embedder:
            return self._local(name, "embedder", section)
        upstreams = self._upstreams(name, section)
        ways = tuple(find_way(name, upstream, self._settings.outbound) for upstream in upstreams)
        made_of = (section, ways, self._settings.resilience, self._workers, self._prices)
        same = self._unchanged(name, made_of)
        if same is not None:
            return same
        places = [self._place(name, *each) for each in zip(upstreams, ways, strict=True)]
        deployments, seats = [place[0] for place in places], [place[1] for place in places]
        for nth, (upstream, seat) in enumerate(zip(upstreams, seats, strict=True)):
            twins = sum(_where(other) == _where(upstream) for other in upstreams[:nth])
            seat.name = f"{upstream.base_url} {upstream.model} {twins}"
        return self._following(
            Model(
                name,
                deployments,
                prices=self._prices,
                seats=seats,
                rule=section.balance,
                retrying=self._retrying(name),
                hedge=section.hedge,
                fallbacks=section.fallbacks,
                output_cap=section.output_cap,
                prefix_bytes=section.prefix_bytes if section.balance == "prefix" else None,
                made_of=made_of,
            )
        )

    def _local(self, name: str, process: str, section: ModelSettings, members: tuple[str, ...] = ()) -> Model:
        patience_s = (
            self._settings.server.deadline_s + 1
        )  # the caller's deadline decides, not a clock of ours
        upstream = OpenAIModel(
            base_url=f"unix://{self._sockets[process]}",
            model=name,
            timeout_s=patience_s,
            first_token_timeout_s=patience_s,
            idle_timeout_s=patience_s,
            endpoints=SERVED[process],
        )
        made_of = (section, members, upstream, self._settings.resilience, self._prices)
        same = self._unchanged(name, made_of)
        if same is not None:
            return same
        return self._following(
            Model(
                name,
                [Deployment(name, upstream)],
                members=members,
                prices=self._prices,
                local=process,
                seats=[Seat(breaker=Breaker(failures=NEVER))],
                retrying=self._retrying(name),
                fallbacks=() if members else section.fallbacks,
                output_cap=section.output_cap,
                made_of=made_of,
            )
        )

    def _unchanged(self, name: str, made_of: object) -> Model | None:
        old = self._before.get(name)
        return old if old is not None and old.made_of == made_of else None

    def _upstreams(self, name: str, section: ModelSettings) -> list[OpenAIModel]:
        """A model's deployments; a provider with a protocol of its own as the OpenAI-compatible backend that the hosted
        process makes it, with an account of its own."""
        hosted = [
            OpenAIModel(
                base_url=f"unix://{self._sockets['hosted']}",
                model=deployment_id(name, index),
                endpoints=SERVED["hosted"],
                **{
                    "account": deployment_id(name, index),
                    **upstream.model_dump(include=set(DeploymentSettings.model_fields), exclude_none=True),
                },
            )
            for index, upstream in enumerate(section.hosted or ())
        ]
        return [*(section.openai or ()), *hosted]

    def _following(self, model: Model) -> Model:
        if model.name in self._before:
            model.follow(self._before[model.name])
        return model

    def _retrying(self, name: str) -> Retrying:
        """With what is left of the model's retry budget, where its rules are the same."""
        resilience = self._settings.resilience
        retrying = Retrying(resilience.retries, resilience.backoff_s, resilience.retry_budget)
        old = self._before.get(name)
        return old.retrying if old is not None and old.retrying.same(retrying) else retrying

    def _place(self, name: str, upstream: OpenAIModel, way: Way) -> tuple[Deployment, Seat]:
        """A deployment and its seat: the old ones where nothing changed; where only its settings did, a new
        one whose breaker and latency go on."""
        found: tuple[Deployment, Seat] | None = None
        if (old := self._before.get(name)) is not None:
            for deployment, seat in zip(old.deployments, old.seats, strict=True):
                if id(seat) in self._taken:
                    continue
                if deployment.made_of == (upstream, way):
                    self._taken.add(id(seat))
                    return deployment, self._seat(name, upstream, seat)
                if _where(deployment.made_of[0]) == _where(upstream):
                    found = deployment, seat
        if found is not None:
            self._taken.add(id(found[1]))
        seat = self._seat(name, upstream, found[1] if found else None, changed=True)
        return Deployment(name, upstream, way), seat

    def _seat(self, name: str, upstream: OpenAIModel, old: Seat | None, *, changed: bool = False) -> Seat:
        breaker = Breaker(self._settings.resilience.breaker_failures, self._settings.resilience.cooldown_s)
        if old is not None and not changed and old.breaker.same(breaker):
            return old
        slots = upstream.max_concurrent
        seat = Seat(
            upstream.weight,
            breaker,
            None if slots is None else max(1, slots // self._workers),
            _per_minute(upstream.rpm, self._workers),
            _per_minute(upstream.tpm, self._workers),
            account=self._accounts.setdefault(_account(name, upstream), Account()),
        )
        if old is not None:
            seat.breaker, seat.latency_s = old.breaker.continued(breaker), old.latency_s
            if old.requests and seat.requests and old.requests.same(seat.requests):
                seat.requests = old.requests
            if old.tokens and seat.tokens and old.tokens.same(seat.tokens):
                seat.tokens = old.tokens
        return seat


def _where(upstream: OpenAIModel) -> object:
    """What makes two settings the same deployment."""
    return upstream.base_url, upstream.model, upstream.api_key


def _account(name: str, upstream: OpenAIModel) -> object:
    """What makes two deployments count against the same limits: the account they name; else, within the model
    `name` (for providers limit by model), the same server and key."""
    if upstream.account is not None:
        return upstream.account
    return name, upstream.base_url, upstream.api_key


def _per_minute(limit: int | None, workers: int) -> Bucket | None:
    """One worker's share of a limit per minute."""
    return None if limit is None else Bucket(max(1.0, limit / workers), limit / workers / 60)
