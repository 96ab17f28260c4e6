"""`cache-control` of a request."""

from __future__ import annotations

import pytest

from gateway.caching.control import Control


@pytest.mark.parametrize(
    ("header", "read", "write", "only", "max_age_s"),
    [
        (b"", True, True, False, float("inf")),
        (b"no-store", False, False, False, float("inf")),
        (b"No-Cache", False, True, False, float("inf")),
        (b"max-age=60, only-if-cached", True, True, True, 60.0),
        (b'max-age="5"', True, True, False, 5.0),
        (b"max-age=0", False, True, False, 0.0),
        (b"max-age=soon, max-stale, =, ,", True, True, False, float("inf")),
        (b"max-age=99999999999999999999999999", True, True, False, float("inf")),
        (b"\xff\xfe", True, True, False, float("inf")),
    ],
)
def test_directives(header: bytes, read: bool, write: bool, only: bool, max_age_s: float) -> None:
    """What RFC 9111 defines is understood; what it does not is ignored."""
    assert Control.parse(header) == Control(read, write, only, max_age_s)
