"""Who may ask a gateway without a key."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.open_door import anybody_may_ask
from tests.gateway.conftest import settings_for
from tests.served import Start


@pytest.mark.parametrize(
    ("host", "sections", "open_to_all"),
    [
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("192.0.2.7", {}, True),
        ("gateway.example", {}, True),
        ("127.0.0.2", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {"keys": {"required": True}}, False),
        ("0.0.0.0", {"server": {"master_key": "sk"}}, False),
    ],
)
def test_open_door(host: str, sections: dict[str, Any], open_to_all: bool) -> None:
    """Other machines reach whatever is not loopback; either kind of key closes the door."""
    assert anybody_may_ask(settings_for("http://x/v1", {"a": {}}, **sections), host) is open_to_all


async def test_the_start_says_so(start: Start, config: str) -> None:
    """Who opens a gateway to the network without keys reads it in the log."""
    served = await start(config + "\nserver: {host: 0.0.0.0}")
    await served.ready()
    await served.logs("whoever reaches 0.0.0.0 may ask models: there is no key. Set keys.required")
