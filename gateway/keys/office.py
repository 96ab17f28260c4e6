"""What an administrator does with keys. Every deed goes into the audit log, before its result is told."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.keys.book import Book
from gateway.keys.key import Key
from gateway.keys.secret import Pepper, new_secret
from gateway.ledger.text_keeping import TextKeeping
from protocol.errors import BadRequest, NotFound, SettingsError, StateUnavailable
from protocol.settings.faults import plainly
from protocol.tenancy import LimitSettings

__all__ = ["Office", "Order"]

log = logging.getLogger("chorus.keys")

MAX_DAYS = 36_500


class Order(BaseModel):
    """What can be said of a key: when it is made, and, all but its life, later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alias: str | None = Field(None, max_length=128)
    owner: str | None = Field(None, max_length=256)
    team: str | None = Field(None, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    models: tuple[str, ...] | None = Field(None, max_length=1000)
    tags: tuple[str, ...] = Field((), max_length=64)
    limits: LimitSettings = LimitSettings()
    expires_in_days: float | None = Field(None, gt=0, le=MAX_DAYS)
    cached: bool = True
    text_days: float | None = Field(None, gt=0)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Order:
        """Raises `BadRequest` naming the first field that is wrong."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if part != "[key]")
            if first["type"] == "extra_forbidden":
                known = LimitSettings if first["loc"][0] == "limits" else cls
                raise BadRequest(
                    f"Unknown field '{where}'; known: {', '.join(known.model_fields)}.", param=where
                ) from None
            raise BadRequest(f"'{where}': {plainly(first['msg'])}.", param=where) from None


class Office:
    """Keys made, changed, rotated and revoked, each time by an `actor`. `texts` has what is stored of keys that have
    that switched on. Raises `StoreAway`, `NotFound`."""

    def __init__(
        self, book: Book, pepper: Pepper, texts: TextKeeping, now: Callable[[], float] = time.time
    ) -> None:
        self._book, self._pepper, self._texts, self._now = book, pepper, texts, now

    async def create(self, order: Order, actor: str) -> tuple[Key, str]:
        """A new key and its secret, which nobody can tell again."""
        self._check(order)
        now = self._now()
        secret = new_secret()
        key = Key(
            f"key_{secrets.token_hex(8)}",
            order.alias,
            order.owner,
            order.team,
            order.models,
            order.tags,
            order.limits,
            created=now,
            expires=self._expiry(order),
            cached=order.cached,
            text_days=order.text_days,
        )
        await self._note(actor, "create", key)
        await self._book.put(key, self._pepper.digest(secret.encode()))
        return key, secret

    async def keys(self) -> list[Key]:
        """All keys, oldest first."""
        return sorted(await self._book.all(), key=lambda key: key.created)

    async def find(self, name: str) -> Key:
        """The key with this id or alias."""
        found = [key for key in await self._book.all() if name in (key.id, key.alias)]
        active = [key for key in found if key.revoked is None] or found
        if not active:
            raise NotFound(f"There is no key {name[:128]!r}.")
        if len(active) > 1:
            ids = ", ".join(key.id for key in active[:8]) + (", …" if len(active) > 8 else "")
            raise NotFound(
                f"{len(active)} keys have the alias {name[:128]!r}; name one of them by its id: {ids}."
            )
        return active[0]

    async def change(self, name: str, body: Mapping[str, Any], actor: str) -> Key:
        """Change what `body` names of a key. Where that is `text_days`, what was stored for longer is removed before
        this returns; by other machines, which have ledgers of their own, within a minute."""
        key = await self.find(name)
        order = Order.parse(body)
        self._check(order)
        if "expires_in_days" in body:
            raise BadRequest("A key's life is set when it is made; rotate it.", param="expires_in_days")
        key = replace(key, **{field: getattr(order, field) for field in body})
        await self._note(actor, "change", key, fields=sorted(body))
        await self._book.put(key)
        if "text_days" in body:
            await self._remove()
        return key

    async def rotate(
        self, name: str, actor: str, *, grace_s: float = 0.0, terms: Mapping[str, Any] | None = None
    ) -> tuple[Key, str]:
        """The same key with a new secret; the old one is good for `grace_s` seconds more. What `terms` name of it is
        changed as by `change`, its life too, which then begins anew; all else is carried over."""
        key, terms = await self.find(name), terms or {}
        if key.revoked is not None:
            raise BadRequest("A revoked key stays revoked.")
        order = Order.parse(terms)
        self._check(order)
        fields = {field: getattr(order, field) for field in terms if field != "expires_in_days"}
        if "expires_in_days" in terms:
            fields["expires"] = self._expiry(order)
        key = replace(key, **fields)
        if key.state(self._now()) == "expired":
            raise BadRequest("The key has expired; give it a new life.", param="expires_in_days")
        secret = new_secret()
        await self._note(actor, "rotate", key, grace_s=grace_s, fields=sorted(terms))
        await self._book.put(key, self._pepper.digest(secret.encode()), grace_s=grace_s)
        if "text_days" in terms:
            await self._remove()
        return key, secret

    async def revoke(self, name: str, actor: str) -> Key:
        """End a key for good, its former secrets too."""
        key = replace(await self.find(name), revoked=self._now())
        await self._note(actor, "revoke", key)
        await self._book.put(key)
        return key

    async def audit(self, count: int = 100) -> list[dict[str, Any]]:
        """The latest deeds, latest first."""
        return await self._book.notes(count)

    def _expiry(self, order: Order) -> float | None:
        return self._now() + order.expires_in_days * 86_400 if order.expires_in_days else None

    async def _remove(self) -> None:
        try:
            await self._texts.sweep()
        except (StateUnavailable, SettingsError) as error:
            log.warning("stored prompts and answers are removed once the ledger answers: %s", error)

    async def looked(self, request: str, key: str, actor: str) -> None:
        """The stored prompt and answer of a `request` of the key with this id are read."""
        await self._book.note({"actor": actor, "action": "read text", "key": key, "request": request})

    def _check(self, order: Order) -> None:
        """Raises `BadRequest` for more than the settings allow."""
        most = self._texts.most_days if self._texts.most_bytes else 0
        if order.text_days is not None and order.text_days > most:
            raise BadRequest(
                f"'text_days': the gateway stores prompts and answers for at most {most} days"
                " (ledger.max_text_days, ledger.retention_days)."
                if most
                else "'text_days': the gateway stores no prompts and answers (ledger.max_text_days, ledger.enabled).",
                param="text_days",
            )

    async def _note(self, actor: str, action: str, key: Key, **detail: Any) -> None:
        await self._book.note({"actor": actor, "action": action, "key": key.id, "alias": key.alias, **detail})
