"""The ASGI application: requests go to the generation in force; a reload puts another in its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from backends.registry import Sockets
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from gateway.exchange import Receive, Scope, Send
from gateway.generation import Generation
from gateway.pages import Lifespan, make_pages
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy
from protocol.settings import Settings

__all__ = ["Gateway", "make_app"]


def make_app(settings: Settings, sockets: Sockets) -> Gateway:
    """The gateway that `settings` describe; `sockets` are where our own processes serve. Raises
    `SettingsError`."""
    return Gateway(make_catalogue(settings, sockets), settings)


class Gateway:
    """An ASGI application (lifespan included) over a `catalogue`, which it closes at shutdown."""

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self.telemetry = Telemetry(catalogue.names)
        self._tenancy = tenancy = Tenancy(settings, self.telemetry.ledger_dropped)
        self.leaving = False
        """Whether `/readyz` says 503, so that nobody sends new requests here."""
        self._pages = make_pages(
            lambda: self._now.catalogue,
            self.telemetry,
            created=int(time.time()),
            degraded=tenancy.degraded,
            leaving=lambda: self.leaving,
            lifespan=self._lifespan(),
        )
        self._now = Generation(settings, catalogue, tenancy, self.telemetry, self._pages)
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
        return Generation(settings, catalogue, tenancy, self.telemetry, self._pages)

    def commit(self, generation: Generation) -> None:
        """Let `generation` answer what comes from now on. The one before it goes on with what it has begun."""
        before, self._now = self._now, generation
        self._old.add(before)
        self.telemetry.names_are(generation.catalogue.names)
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
            watching = self.telemetry.watch(lambda: self._now.catalogue.models, self._tenancy.degraded)
            watch = asyncio.create_task(watching)
            try:
                async with self._tenancy.serving():
                    yield
            finally:
                watch.cancel()
                await asyncio.gather(*self._closing)
                for generation in (*self._old, self._now):
                    await generation.catalogue.close()

        return lifespan
