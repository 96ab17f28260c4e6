"""Who may come in. One master key for now; keys, limits and budgets of tenants come later and stand here."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from pydantic import SecretStr

from protocol.errors import Unauthenticated

__all__ = ["Admission"]


class Admission:
    """`master_key` None admits everyone."""

    def __init__(self, master_key: SecretStr | None) -> None:
        self._expected = master_key.get_secret_value().encode() if master_key else None

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises `Unauthenticated` unless `headers` (lower-case names) carry the key; compares in constant
        time."""
        if self._expected is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if not given and b"x-api-key" in headers:  # where Anthropic's SDKs send it
            scheme, given = b"bearer", headers[b"x-api-key"]
        if not given:
            raise Unauthenticated("No API key was given. Send it as 'Authorization: Bearer <key>'.")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._expected):
            raise Unauthenticated("The API key is not valid here.")
