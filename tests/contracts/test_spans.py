"""Every registered span method keeps the contract, and the checks catch methods that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.methods import Method, load_method, methods
from tests.contracts import span_checks
from tests.contracts.span_checks import BROKEN, CHECKS, Make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", [*methods("span"), *methods("step")], ids=lambda method: method.id)
def test_span_method(method: Method, check: Callable[[Make], None]) -> None:
    """A span method with its default options keeps the law."""
    check(load_method(method))


@pytest.mark.parametrize(("broken", "check"), BROKEN, ids=lambda thing: thing.__name__)
def test_checks_bite(broken: Make, check: Callable[[Make], None]) -> None:
    """A method broken on purpose is caught by the check meant for it."""
    with pytest.raises(AssertionError):
        check(broken)


def test_every_check_is_listed() -> None:
    """No check of the module is forgotten in CHECKS."""
    written = {name for name in vars(span_checks) if name.startswith("check_")}
    assert written == {check.__name__ for check in CHECKS}
