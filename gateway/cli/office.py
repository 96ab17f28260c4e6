"""What the command line does with keys, in the name of who types it."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from protocol.errors import SettingsError

if TYPE_CHECKING:
    from gateway.keys.office import Office

__all__ = ["with_office"]

T = TypeVar("T")


def with_office(config: Path, deed: Callable[[Office, str], Awaitable[T]]) -> T:
    """Do it with the keys that `config` leads to, as which user of this machine. Raises `SettingsError`."""
    from gateway.state.store import StoreAway
    from gateway.tenancy import make_office, make_shared
    from protocol.settings import load_settings

    settings = load_settings(config)

    async def act() -> T:
        shared = make_shared(settings)
        try:
            return await deed(make_office(settings, shared), f"cli:{getpass.getuser()}")
        except StoreAway as error:
            raise SettingsError(f"The store of keys does not answer: {error}") from None
        finally:
            await shared.store.close()

    return asyncio.run(act())
