"""Options of methods: what is refused, and how it is named."""

from __future__ import annotations

from typing import Literal

import pytest

from ensembles.options import configured, number, one_of, whole
from protocol.errors import SettingsError
from protocol.methods import find_method


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


@pytest.mark.parametrize("value", [-0.5, 1.5, True, float("nan"), float("inf"), "1", None])
def test_what_is_no_number_in_the_range(value: object) -> None:
    """Bounds belong to the range; without an upper one a number must be finite all the same."""
    number("some", 0, 1, least=0, most=1.0)
    number("some", 0, big=1e9)
    with pytest.raises(SettingsError, match="some: share must be a number between 0 and 1"):
        number("some", 0, 1, share=value)
    with pytest.raises(SettingsError, match="some: size must be a number of at least 2"):
        number("some", 2, size=value)


def test_options_a_method_does_not_have() -> None:
    """They are told with their place in the config."""
    method = find_method("cool-fusion", "span")
    assert configured(method, {"tokens": 8}, "here").tokens == 8
    with pytest.raises(SettingsError, match=r"here: .*colour"):
        configured(method, {"colour": 1}, "here")
