"""Secrets: made here, shown once, kept only as keyed digests."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from protocol.errors import SettingsError

__all__ = ["PREFIX", "Pepper", "kept_secret", "new_secret"]

PREFIX = "sk-chorus-"


def new_secret(prefix: str = PREFIX) -> str:
    """A fresh secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


class Pepper:
    """Turns a key into what is stored of it. Without the pepper a stolen table is of no use, not even to somebody who
    guesses keys."""

    def __init__(self, pepper: str) -> None:
        self._pepper = pepper.encode()

    def digest(self, secret: bytes) -> str:
        """HMAC-SHA256 of `secret`, as hex."""
        return hmac.digest(self._pepper, secret, "sha256").hex()


def kept_secret(path: Path, prefix: str = "") -> str:
    """The secret in the file at `path`, which only this user may read; made when there is none. Several processes may
    ask at once. Raises `SettingsError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(new_secret(prefix) + "\n")
            try:
                path.hardlink_to(draft)  # all at once, and never over another process's
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"Cannot keep a secret in {path}: {error.strerror}. Set state.folder.") from error
