"""Options of methods: what is refused, and how it is named."""

from __future__ import annotations

from typing import Literal

import pytest

from ensembles.options import one_of, whole
from protocol.errors import SettingsError


@pytest.mark.parametrize("value", [0, 5, True, 2.0, "2", None])
def test_what_is_no_integer_in_the_range(value: object) -> None:
    """Bounds belong to the range, a boolean is no number, and method and option are named."""
    whole("some", 1, 4, least=1, most=4)
    whole("some", 1, big=10**9)
    with pytest.raises(SettingsError, match="some: size must be an integer between 1 and 4"):
        whole("some", 1, 4, least=1, size=value)


def test_what_is_not_among_the_choices() -> None:
    """The choices are told."""
    one_of("some", Literal["a", "b"], mode="b")
    with pytest.raises(SettingsError, match=r"some: mode must be one of \('a', 'b'\), got 'c'"):
        one_of("some", Literal["a", "b"], mode="c")
