"""Keys, limits, money and ledger of one worker, made from the settings: what the request path asks before and tells
after each answer."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.admission import Admission
from gateway.keys.book import Book, RedisBook, SqliteBook
from gateway.keys.directory import Directory
from gateway.keys.key import Key
from gateway.keys.office import Office
from gateway.keys.secret import Pepper, kept_secret
from gateway.ledger.entry import Entry, cost_nano
from gateway.ledger.place import make_ledger
from gateway.ledger.text_keeping import TextKeeping
from gateway.ledger.writer import LedgerWriter
from gateway.limits.bounds import Bound, Bounds
from gateway.limits.door import Door, Stay
from gateway.limits.rates import Rates
from gateway.limits.slices import Slices
from gateway.state.redis_client import RedisClient
from gateway.state.redis_store import RedisStore
from gateway.state.sqlite_file import SqliteFile
from gateway.state.sqlite_store import MIGRATIONS, SqliteStore
from gateway.state.store import Store
from protocol.errors import SettingsError
from protocol.run import Trace
from protocol.settings import Settings
from protocol.tenancy import state_folder

__all__ = ["Shared", "Tenancy", "Visit", "make_office", "make_pepper", "make_shared"]

log = logging.getLogger("chorus.gateway")


@dataclass(frozen=True, slots=True)
class Shared:
    """What is shared with other workers: limits and budgets, and keys."""

    store: Store
    book: Book


def make_shared(settings: Settings) -> Shared:
    """Redis where the settings name one, else SQLite files. Nothing is opened yet."""
    if settings.redis is not None:
        client, prefix = RedisClient(settings.redis.url.get_secret_value()), settings.redis.prefix
        return Shared(RedisStore(client, prefix), RedisBook(client, prefix))
    file = SqliteFile(state_folder(settings.state) / "state.db", MIGRATIONS)
    return Shared(SqliteStore(file), SqliteBook(file))


def make_pepper(settings: Settings) -> Pepper:
    """Raises `SettingsError` where there is none and none can be kept."""
    if settings.keys.pepper is not None:
        return Pepper(settings.keys.pepper.get_secret_value())
    if settings.redis is not None:
        raise SettingsError("keys.pepper: required with redis.url, so that all gateways know the same keys.")
    return Pepper(kept_secret(state_folder(settings.state) / "pepper"))


def make_office(settings: Settings, shared: Shared) -> Office:
    """Raises `SettingsError` as `make_pepper` does."""
    return Office(shared.book, make_pepper(settings), TextKeeping.of(settings, shared.book))


@dataclass(slots=True)
class Visit:
    """One request, from the door to the books."""

    key: Key
    stay: Stay | None = None

    def headers(self) -> dict[str, str]:
        """What the answer tells of the limits that concern it."""
        return {} if self.stay is None else self.stay.headers()


class Tenancy:
    """`serving` must be entered before requests come. `dropped` is told of entries that the ledger lost,
    `text_dropped` of those that it has without what was said."""

    def __init__(
        self,
        settings: Settings,
        dropped: Callable[[int], None] = lambda count: None,
        text_dropped: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._shared = shared = make_shared(settings)
        self._directory = _directory(settings, shared.book)
        self._admission = self._door_keeper(settings)
        self._slices = Slices(shared.store, secrets.token_hex(8))
        alone = settings.limits.without_store == "local"
        self._rates = Rates(shared.store, time.monotonic, alone=alone)
        self._door = Door(settings.limits, shared.store, self._slices, self._rates)
        self._bounds = Bounds(settings, _pools(settings))
        self._texts = TextKeeping.of(settings, shared.book)
        self._ledger: LedgerWriter | None = None
        if settings.ledger.enabled:
            self._ledger = LedgerWriter(
                make_ledger(settings),
                queue=settings.ledger.queue,
                retention_days=settings.ledger.retention_days,
                dropped=dropped,
                text_bytes=self._texts.most_bytes,
                text_dropped=text_dropped,
            )

    def renewed(self, settings: Settings) -> Tenancy:
        """Over the same keys, accounts and ledger, with the admission, limits and prices of other `settings`. What a
        request set aside with the one is settled with it. Raises `SettingsError`."""
        if settings.keys.required and self._directory is None:
            raise SettingsError(
                "keys.required: no keys can be kept here; the start of this process says why."
            )
        tenancy: Tenancy = copy(self)
        tenancy._admission = self._door_keeper(settings)
        tenancy._door = self._door.renewed(settings.limits)
        tenancy._bounds = Bounds(settings, _pools(settings))
        return tenancy

    def _door_keeper(self, settings: Settings) -> Admission:
        return Admission(settings.server.master_key, self._directory, required=settings.keys.required)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Keep leases, rates, keys and the ledger going. Leaving gives everything back and writes what waits."""
        await self._shared.store.open()
        tasks = [asyncio.create_task(each.run()) for each in (self._slices, self._rates, self._texts)]
        if self._directory is not None:
            await self._directory.look()
            tasks.append(asyncio.create_task(self._directory.run()))
        if self._ledger is not None:
            self._ledger.start()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._slices.close()
            if self._ledger is not None:
                await asyncio.to_thread(self._ledger.close)
            await self._shared.store.close()

    def degraded(self) -> list[str]:
        """What does not work at present, though requests are answered."""
        told = ["shared state"] if self._shared.store.degraded else []
        return [*told, "ledger"] if self._ledger is not None and self._ledger.failing else told

    def admit(self, headers: Mapping[bytes, bytes]) -> Coroutine[Any, Any, Key]:
        """Who asks. Raises `Unauthenticated`, `StateUnavailable`."""
        return self._admission.admit(headers)

    async def enter(
        self, visit: Visit, name: str, body: Mapping[str, Any], size: int, path: str
    ) -> Bound | None:
        """Set aside what a request for `name`, whose `body` came as `size` bytes, may use on the surface
        `path`. Returns the bound that its calls must keep to, where a budget of money concerns them. Raises
        `RateLimited`, `QuotaSpent`, `StateUnavailable`."""
        terms = self._door.concerns(visit.key, name)
        if not terms.gates:
            return None
        bound = self._bounds.of(name, body, size, writes=path != "/embeddings")
        visit.stay = await self._door.enter(terms, bound)
        return bound if terms.metered else None

    @property
    def caps(self) -> Mapping[str, int]:
        """Model → the most tokens that are asked of it under a budget, where the request does not say."""
        return self._bounds.caps

    def leave(self, visit: Visit, trace: Trace | None) -> None:
        """Settle what the request really used; to be called once, whatever became of it."""
        if visit.stay is not None:
            trace = trace or Trace()
            self._door.leave(visit.stay, cost_nano(trace), trace.used_tokens)

    def stored_bytes(self, key: Key) -> int:
        """How much is stored of a prompt, and of an answer, of this caller; 0 for nothing, as is usual."""
        return self._texts.most_bytes if key.text_days else 0

    def record(self, entry: Entry) -> None:
        """Have a request written to the ledger."""
        if self._ledger is not None:
            self._ledger.add(entry)


def _directory(settings: Settings, book: Book) -> Directory | None:
    """None where there can be no virtual keys, because no pepper can be kept and none is needed."""
    try:
        return Directory(book, make_pepper(settings))
    except SettingsError as error:
        if settings.keys.required:
            raise
        log.warning("no virtual keys: %s", error)
        return None


def _pools(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Route → the names its artefact was made for, among which it chooses."""
    pools = {}
    for name, strategy in settings.strategies.items():
        if strategy.route is not None:
            pools[name] = _pool(strategy.route.artefact / "manifest.json", settings)
    return pools


def _pool(manifest: Path, settings: Settings) -> tuple[str, ...]:
    try:
        return tuple(orjson.loads(manifest.read_bytes())["models"])
    except (OSError, KeyError, orjson.JSONDecodeError):
        return tuple(name for name, model in settings.models.items() if not model.embedder)
