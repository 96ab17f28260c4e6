"""A virtual key as it is kept: everything but its secret."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import ModelNotFound
from protocol.tenancy import LimitSettings

__all__ = ["ANYONE", "MASTER", "Key"]


@dataclass(frozen=True, slots=True)
class Key:
    """Who it belongs to and what it may do. `models`: the models and strategies it may name, None: all. Times in
    seconds since the epoch."""

    id: str
    alias: str | None = None
    owner: str | None = None
    team: str | None = None
    models: tuple[str, ...] | None = None
    tags: tuple[str, ...] = ()
    limits: LimitSettings = field(default_factory=LimitSettings)
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    cached: bool = True
    """Whether answers to it may be kept, and kept ones given to it."""
    text_days: float | None = None
    """For how many days its prompts and answers are stored with the ledger; None: never."""

    @property
    def tenant(self) -> str:
        """Within whom answers may be shared: its team, else itself."""
        return f"team {self.team}" if self.team else f"key {self.id}"

    def state(self, now: float) -> str:
        """One of "active", "expired", "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"

    def names(self, known: Iterable[str]) -> list[str]:
        """Those of the `known` names that it may use."""
        return [name for name in known if self.models is None or name in self.models]

    def check(self, name: str, known: Collection[str]) -> None:
        """Raises `ModelNotFound`, which lists only what it may use, for a name that it may not."""
        if self.models is not None and name not in self.models:
            raise ModelNotFound(name, self.names(known))

    def wire(self) -> dict[str, Any]:
        """As JSON values; there is no secret and no digest in it."""
        return {
            "id": self.id,
            "alias": self.alias,
            "owner": self.owner,
            "team": self.team,
            "models": None if self.models is None else list(self.models),
            "tags": list(self.tags),
            "limits": self.limits.model_dump(exclude_none=True),
            "created": self.created,
            "expires": self.expires,
            "revoked": self.revoked,
            "cached": self.cached,
            "text_days": self.text_days,
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Key:
        """The key that `wire` told."""
        models = value["models"]
        return cls(
            value["id"],
            value["alias"],
            value["owner"],
            value["team"],
            None if models is None else tuple(models),
            tuple(value["tags"]),
            LimitSettings.model_validate(value["limits"]),
            value["created"],
            value["expires"],
            value["revoked"],
            value.get("cached", True),  # a key of an older book
            value.get("text_days"),
        )


MASTER = Key("master")
"""The holder of `server.master_key`: everything, without limits of its own."""
ANYONE = Key("anonymous")
"""A caller without a key, where none is needed."""
