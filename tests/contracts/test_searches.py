"""Every registered search keeps the contract, and the checks catch searches that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ensembles.tokens.abe import ABE
from ensembles.tokens.base import Search
from protocol.methods import Method, load_method, methods
from tests.contracts import search_checks
from tests.contracts.search_checks import BROKEN, CHECKS, Make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", tuple(methods("search")), ids=lambda method: method.id)
def test_search(method: Method, check: Callable[[Make], None]) -> None:
    """A search with its default options keeps the law."""
    check(load_method(method))


@pytest.mark.parametrize(("broken", "check"), BROKEN, ids=lambda thing: thing.__name__)
def test_checks_bite(broken: Callable[[Search], Search], check: Callable[[Make], None]) -> None:
    """A search broken on purpose is caught by the check meant for it."""
    with pytest.raises(AssertionError):
        check(lambda: broken(ABE()))


def test_every_check_is_listed() -> None:
    """No check of the module is forgotten in CHECKS."""
    written = {name for name in vars(search_checks) if name.startswith("check_")}
    assert written == {check.__name__ for check in CHECKS}
