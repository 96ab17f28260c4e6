"""Blotting out what looks like a secret: the second line of defence of whatever is written for others to read.

The first is that nothing secret is put there. This one knows the secrets of the settings by heart, and the shapes
that keys of others have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, SecretStr

__all__ = ["BLOT", "Redaction", "secrets_of"]

BLOT = "[redacted]"
SHORTEST = 6
"""A shorter secret of the settings is no secret, and blotting it out would only garble words."""

_SHAPES = re.compile(
    r"""(?ix)
    (?P<before> \b(?:bearer|basic)\s+ )        [A-Za-z0-9._~+/=-]{6,}                         # authorization: Bearer …
  | (?P<name> (?:api[_-]?key|secret|password|passwd|authorization|access[_-]?token)["']?
              \s*[:=]\s*["']? )                (?!(?:bearer|basic)\s)[^\s"',;&}]{6,}           # "api_key": "…"
  | (?P<address> :// )                         [^\s/@"']+@                                    # https://user:pass@host
  | \b(?:sk|pk|rk|xai|hf|gsk|ghp|gho|pat)[-_][A-Za-z0-9_-]{6,}                               # sk-…
  | \b(?:AKIA|ASIA)[A-Z0-9]{12,} | \bAIza[A-Za-z0-9_-]{20,}                                  # clouds' key ids
  | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*                                # JSON web tokens
    """
)
_HINTS = (
    *("bearer", "basic", "apikey", "api_key", "api-key", "secret", "passw", "authoriz", "://"),
    *("accesstoken", "access_token", "access-token"),
    *("sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "xai-", "hf_", "gsk_", "pat-", "pat_", "ghp_", "gho_"),
    *("akia", "asia", "aiza", "eyj"),
)
"""Without one of these in a text, in small letters, there is nothing of those shapes in it: so it is with most."""


class Redaction:
    """Blots out `secrets`, and whatever has the shape of one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: list[str] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Blot these out too from now on."""
        long = (secret for secret in secrets if len(secret) >= SHORTEST)
        self._known = sorted({*self._known, *long}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._known:
            text = text.replace(secret, BLOT)
        small = text.lower()
        return _SHAPES.sub(_blot, text) if any(hint in small for hint in _HINTS) else text


def _blot(match: re.Match[str]) -> str:
    if match["address"]:
        return f"://{BLOT}@"
    return f"{match['before'] or match['name'] or ''}{BLOT}"


def secrets_of(settings: Any) -> set[str]:
    """Every secret in `settings`, and what stands before the @ of every address there."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, SecretStr):
            found.add(value.get_secret_value())
            look(value.get_secret_value())
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                look(getattr(value, name))
        elif isinstance(value, dict):
            for item in value.values():
                look(item)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for item in value:
                look(item)
        elif isinstance(value, str) and "://" in value and "@" in value:
            # Not urlsplit, which refuses some of what stands in files.
            userinfo = re.split(r"[/?#]", value.partition("://")[2], maxsplit=1)[0].rpartition("@")[0]
            found.update(part for part in (userinfo, userinfo.partition(":")[2]) if part)

    look(settings)
    return found
