"""Virtual keys: made, found, changed, rotated, revoked; in SQLite and in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.admission import Admission
from gateway.keys.book import Book, RedisBook, SqliteBook
from gateway.keys.directory import Directory
from gateway.keys.key import ANYONE, MASTER
from gateway.keys.office import Office, Order
from gateway.keys.secret import PREFIX, Pepper, kept_secret
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.text_keeping import TextKeeping
from gateway.state.sqlite_file import SqliteFile
from gateway.state.sqlite_store import MIGRATIONS
from gateway.state.store import StoreAway
from protocol.errors import BadRequest, ModelNotFound, NotFound, StateUnavailable, Unauthenticated

PEPPER = Pepper("canary-pepper")


class Clock:
    """Told, not read."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.requires("redis-server"))])
async def book(
    request: pytest.FixtureRequest, tmp_path: Path, start_redis: Any, clock: Clock
) -> AsyncIterator[Book]:
    """A book of each kind."""
    if request.param == "sqlite":
        file = SqliteFile(tmp_path / "state.db", MIGRATIONS)
        yield SqliteBook(file, clock)
        await file.close()
    else:
        yield RedisBook((await start_redis()).client(), "t", clock)


@pytest.fixture
def office(book: Book, clock: Clock, tmp_path: Path) -> Office:
    texts = TextKeeping(lambda: SqliteLedger(tmp_path / "ledger.db"), book, 30, 1024)
    return Office(book, PEPPER, texts, clock)


def bearer(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + secret.encode()}


async def test_a_key_is_found_by_its_secret_only(office: Office, book: Book) -> None:
    """The secret has 256 bits and is kept nowhere; its digest finds all that was said of the key."""
    order = Order.parse(
        {"alias": "a", "team": "t", "models": ["one"], "limits": {"rpm": 5, "budgets_usd": {"day": 1}}}
    )
    key, secret = await office.create(order, "test")
    assert secret.startswith(PREFIX)
    assert len(secret.removeprefix(PREFIX)) == 43
    assert await book.find(PEPPER.digest(secret.encode())) == key
    assert await book.find(Pepper("other").digest(secret.encode())) is None
    assert secret not in repr(await office.keys())
    assert PEPPER.digest(secret.encode()) not in repr(key.wire())


async def test_rotation(office: Office, book: Book, clock: Clock) -> None:
    """A rotated key keeps its id; the old secret is good for the grace, or not at all."""
    key, first = await office.create(Order(alias="a"), "test")
    _, second = await office.rotate("a", "test", grace_s=60)
    for secret in (first, second):
        assert await book.find(PEPPER.digest(secret.encode())) == key
    _, third = await office.rotate(key.id, "test")
    assert await book.find(PEPPER.digest(second.encode())) is None
    assert await book.find(PEPPER.digest(third.encode())) == key


async def test_rotation_with_other_terms(office: Office, book: Book, clock: Clock) -> None:
    """What is named of a key changes with its secret, all else is carried over; its life begins anew, which an expired
    key needs; what cannot be is refused before anything changes; the audit log names what changed."""
    order = Order(alias="a", team="t", models=("one",), text_days=2, expires_in_days=1)
    key, first = await office.create(order, "test")
    rotated, _ = await office.rotate("a", "test", terms={"text_days": None, "limits": {"rpm": 5}})
    assert (rotated.text_days, rotated.limits.rpm) == (None, 5)
    assert (rotated.id, rotated.team, rotated.models, rotated.expires) == (key.id, "t", ("one",), key.expires)
    for terms in ({"text_days": 10_000}, {"colour": "red"}):
        with pytest.raises(BadRequest):
            await office.rotate("a", "test", terms=terms)
    clock.now += 90_000
    with pytest.raises(BadRequest, match="new life"):
        await office.rotate("a", "test")
    rotated, secret = await office.rotate("a", "test", terms={"expires_in_days": 1})
    assert rotated.expires == clock.now + 86_400
    assert await book.find(PEPPER.digest(secret.encode())) == rotated
    assert await book.find(PEPPER.digest(first.encode())) is None
    assert [note.get("fields") for note in await office.audit()] == [
        ["expires_in_days"],
        ["limits", "text_days"],
        None,
    ]


async def test_revoked_and_expired_keys(office: Office, book: Book, clock: Clock) -> None:
    """They are refused with the reason and without an echo; a revoked one stays so."""
    admission = Admission(None, Directory(book, PEPPER), now=clock)
    _, mortal = await office.create(Order(expires_in_days=1), "test")
    key, secret = await office.create(Order(alias="a"), "test")
    assert await admission.admit(bearer(secret)) == key
    clock.now += 90_000
    with pytest.raises(Unauthenticated, match="expired") as refused:
        await admission.admit(bearer(mortal))
    assert mortal not in refused.value.message
    await office.revoke("a", "test")
    directory = Directory(book, PEPPER)
    with pytest.raises(Unauthenticated, match="revoked"):
        await Admission(None, directory, now=clock).admit(bearer(secret))
    with pytest.raises(BadRequest):
        await office.rotate("a", "test")


async def test_changes_are_noticed(office: Office, book: Book, clock: Clock) -> None:
    """A worker that knows a key forgets it when anything has changed."""
    directory = Directory(book, PEPPER)
    await directory.look()
    key, secret = await office.create(Order(alias="a"), "test")
    await directory.look()
    assert await directory.find(secret.encode()) == key
    changed = await office.change("a", {"team": "t"}, "test")
    assert await directory.find(secret.encode()) == key
    await directory.look()
    assert await directory.find(secret.encode()) == changed


async def test_audit(office: Office) -> None:
    """Every deed is written down with who did it, latest first."""
    key, _ = await office.create(Order(alias="a"), "alice")
    await office.rotate("a", "bob")
    await office.revoke("a", "carol")
    told = [(note["actor"], note["action"], note["key"]) for note in await office.audit()]
    assert told == [("carol", "revoke", key.id), ("bob", "rotate", key.id), ("alice", "create", key.id)]


async def test_who_is_admitted(book: Book, office: Office) -> None:
    """Without a need for keys anyone; with one the master key and good keys, also as `x-api-key`; nobody else."""
    _, secret = await office.create(Order(), "test")
    open_door = Admission(None, Directory(book, PEPPER))
    assert await open_door.admit({}) is ANYONE
    assert await open_door.admit(bearer("sk-whatever")) is ANYONE
    with pytest.raises(Unauthenticated):
        await open_door.admit(bearer(PREFIX + "wrong"))
    closed = Admission(SecretStr("sk-master"), Directory(book, PEPPER))
    assert await closed.admit(bearer("sk-master")) is MASTER
    assert (await closed.admit({b"x-api-key": secret.encode()})).id.startswith("key_")
    for headers in ({}, bearer("sk-whatever"), {b"authorization": b"Basic " + secret.encode()}):
        with pytest.raises(Unauthenticated):
            await closed.admit(headers)


async def test_unknown_keys_wait_for_the_store(
    office: Office, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store away known keys stay good; of others nothing can be said: 503."""
    directory = Directory(book, PEPPER)
    key, secret = await office.create(Order(), "test")
    admission = Admission(None, directory, required=True)
    await admission.admit(bearer(secret))

    async def away(digest: str) -> None:
        raise StoreAway("away")

    monkeypatch.setattr(book, "find", away)
    assert await admission.admit(bearer(secret)) == key
    with pytest.raises(StateUnavailable):
        await admission.admit(bearer("sk-other"))


def test_a_key_sees_only_its_models() -> None:
    """What it may not name does not exist for it."""
    key = ANYONE.parse({**ANYONE.wire(), "models": ["one", "gone"]})
    assert key.names(["one", "two"]) == ["one"]
    with pytest.raises(ModelNotFound) as refused:
        key.check("two", ["one", "two"])
    assert "Known names: one." in refused.value.message


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"limits": {"rpm": 0}}, "limits.rpm"),
        ({"limits": {"budgets_usd": {"decade": 1}}}, "budgets_usd"),
        ({"secret": "sk-mine"}, "secret"),
        ({"expires_in_days": -1}, "expires_in_days"),
    ],
)
def test_bad_orders(body: dict[str, Any], where: str) -> None:
    """What is wrong is refused by name."""
    with pytest.raises(BadRequest) as refused:
        Order.parse(body)
    assert where in (refused.value.param or "")


async def test_unknown_names(office: Office) -> None:
    """A name that is no key is not found."""
    with pytest.raises(NotFound):
        await office.revoke("nobody", "test")


def test_kept_secrets(tmp_path: Path) -> None:
    """A secret that is made once is the same for all who ask, and only its owner may read it."""
    path = tmp_path / "folder" / "secret"
    assert kept_secret(path, "sk-") == kept_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]
