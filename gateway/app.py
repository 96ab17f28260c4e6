"""The ASGI application: requests go to the generation in force; a reload puts another in its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from backends.registry import Sockets
from gateway.access_log import AccessLog
from gateway.caching.cached import Caches
from gateway.caching.composition import make_caches, make_semantic
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from gateway.exchange import Receive, Scope, Send
from gateway.generation import Generation
from gateway.ids import Ids
from gateway.observers import Observers
from gateway.pages import Lifespan, make_pages
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy
from gateway.tracing import make_tracing
from protocol.log_pipe import LogPipe
from protocol.settings import Settings

__all__ = ["Gateway", "make_app"]


def make_app(settings: Settings, sockets: Sockets, log: LogPipe | None = None) -> Gateway:
    """The gateway that `settings` describe; `sockets` are where our own processes serve, `log` is where requests are
    told. Raises `SettingsError`."""
    return Gateway(make_catalogue(settings, sockets), settings, log)


class Gateway:
    """An ASGI application (lifespan included) over a `catalogue`, which it closes at shutdown."""

    def __init__(self, catalogue: Catalogue, settings: Settings, log: LogPipe | None = None) -> None:
        self.telemetry = telemetry = Telemetry(catalogue.names)
        self._tenancy = tenancy = Tenancy(settings, telemetry.ledger_dropped, telemetry.text_dropped)
        self._tracing = make_tracing(settings, telemetry)
        access = AccessLog(log).finished if log is not None and settings.logging.access else None
        self._log = log
        if log is not None:
            log.dropped = telemetry.log_dropped
        self._observers, self._ids = Observers(access, self._tracing), Ids()
        self.leaving = False
        """Whether `/readyz` says 503, so that nobody sends new requests here."""
        self._pages = make_pages(
            lambda: self._now.catalogue,
            telemetry,
            created=int(time.time()),
            degraded=self._degraded,
            leaving=lambda: self.leaving,
            lifespan=self._lifespan(),
        )
        self._now = self._generation(settings, catalogue, tenancy, make_caches(settings))
        self._old: set[Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        generation = self._now
        generation.requests += 1
        try:
            await generation.app(scope, receive, send)
        finally:
            generation.requests -= 1
            if generation is not self._now and not generation.requests:
                self._forget(generation)

    def prepare(self, settings: Settings, sockets: Sockets) -> Generation:
        """What would answer by other `settings`. Reads files; changes nothing that is in force, and may run in
        another thread. Raises `SettingsError`."""
        catalogue = make_catalogue(settings, sockets, self._now.catalogue)
        tenancy = self._now.tenancy.renewed(settings)
        return self._generation(settings, catalogue, tenancy, self._caches(settings, catalogue))

    def commit(self, generation: Generation) -> None:
        """Let `generation` answer what comes from now on. The one before it goes on with what it has begun."""
        before, self._now = self._now, generation
        self._old.add(before)
        self.telemetry.names_are(generation.catalogue.names)
        if self._log is not None:
            self._log.learn(generation.settings)
        if self._tracing is not None:
            self._tracing.learn(generation.settings)
        if not before.requests:
            self._forget(before)

    @property
    def in_force(self) -> Generation:
        """Who answers what comes now."""
        return self._now

    @property
    def older(self) -> int:
        """Generations that still answer what they began before a reload."""
        return len(self._old)

    def _generation(
        self, settings: Settings, catalogue: Catalogue, tenancy: Tenancy, caches: Caches | None
    ) -> Generation:
        kept = self.telemetry, self._observers, self._ids, self._pages
        return Generation(settings, catalogue, tenancy, *kept, caches)

    def _caches(self, settings: Settings, catalogue: Catalogue) -> Caches | None:
        """Answers kept in memory are forgotten when those who gave them change; what is shared in Redis, by many
        gateways, goes by its age alone. Only vectors are of this worker: another embedder's cannot be compared."""
        now = self._now
        same = (settings.models, settings.strategies) == (now.settings.models, now.settings.strategies)
        if now.caches is None or (same and catalogue.made == now.catalogue.made):
            return now.caches
        if settings.cache is not None and settings.cache.store == "redis":
            return replace(now.caches, semantic=make_semantic(settings))
        return make_caches(settings)

    def _degraded(self) -> list[str]:
        lost = ["telemetry"] if self._tracing is not None and self._tracing.failing else []
        return [*self._tenancy.degraded(), *lost]

    def _forget(self, generation: Generation) -> None:
        """Close the connections that no generation uses any more."""
        self._old.discard(generation)
        used = set().union(*(each.catalogue.deployments() for each in (*self._old, self._now)))
        for deployment in generation.catalogue.deployments() - used:
            task = asyncio.create_task(deployment.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _lifespan(self) -> Lifespan:
        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            telemetry, tracing = self.telemetry, self._tracing
            watches = [
                asyncio.create_task(telemetry.watch(lambda: self._now.catalogue.models, self._degraded)),
                asyncio.create_task(telemetry.flush_often()),
            ]
            if tracing is not None:
                tracing.start()
            if self._now.caches is not None:
                await self._now.caches.store.open()
            try:
                async with self._tenancy.serving():
                    yield
            finally:
                for watch in watches:
                    watch.cancel()
                await asyncio.gather(*watches, *self._closing, return_exceptions=True)
                for generation in (*self._old, self._now):
                    await generation.catalogue.close()
                if self._now.caches is not None:
                    await self._now.caches.keeping.finish()
                    await self._now.caches.store.close()
                if tracing is not None:
                    await asyncio.to_thread(tracing.close)

        return lifespan
