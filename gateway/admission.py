"""Who may come in: the master key, virtual keys, or, where none is needed, anyone."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from gateway.keys.directory import Directory
from gateway.keys.key import ANYONE, MASTER, Key
from gateway.keys.secret import PREFIX
from gateway.state.store import StoreAway
from protocol.errors import StateUnavailable, Unauthenticated

__all__ = ["Admission"]


class Admission:
    """Without a `master_key`, and unless a key is `required`, everyone is admitted; but who shows a virtual key must
    show a good one. `directory` None: there are no virtual keys. `now` tells seconds since the epoch."""

    def __init__(
        self,
        master_key: SecretStr | None,
        directory: Directory | None = None,
        *,
        required: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._master = master_key.get_secret_value().encode() if master_key else None
        self._directory, self._now = directory, now
        self._required = required or master_key is not None

    async def admit(self, headers: Mapping[bytes, bytes]) -> Key:
        """Who asks, by `headers` (lower-case names). Raises `Unauthenticated`, which never repeats what was sent;
        `StateUnavailable` where a key cannot be looked up."""
        given = _given(headers)
        if self._master is not None and given and hmac.compare_digest(given, self._master):
            return MASTER
        if self._directory is not None and given and (self._required or given.startswith(PREFIX.encode())):
            try:
                key = await self._directory.find(given)
            except StoreAway:
                raise StateUnavailable("The store of keys does not answer; try again soon.") from None
            if key is not None:
                return self._checked(key)
        elif not self._required:
            return ANYONE
        if not given:
            raise Unauthenticated("No API key was given. Send it as 'Authorization: Bearer <key>'.")
        raise Unauthenticated("The API key is not valid here.")

    def _checked(self, key: Key) -> Key:
        state = key.state(self._now())
        if state != "active":
            raise Unauthenticated(f"The API key is {state}.")
        return key


def _given(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that was sent, where OpenAI's or Anthropic's SDKs send it; empty when there is none."""
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if not given:
        return headers.get(b"x-api-key", b"").strip()
    # What is no bearer token is no key: it must not be admitted, nor taken for the absence of one.
    return given.strip() if scheme.lower() == b"bearer" else b"?"
