"""Who takes part in the benchmarks of fusions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.asking import HELD_OUT, questions
from benchmarks.lineup import CONTRACTS, lineup
from protocol.errors import SettingsError
from protocol.methods import methods


@pytest.mark.models
def test_every_method_takes_part_or_says_why(weights: Callable[[str], Path]) -> None:
    """Each registered token and span method is in the lineup, named in the config or not, or among the absent."""
    for name in ("smollm2-135m-instruct", "gemma3-270m"):
        weights(name)
    team = lineup()
    present = {entry.method.id for entry in team.entries.values()}
    for contract in CONTRACTS:
        for method in methods(contract):
            assert method.id in present or any(method.id in name for name in team.absent), method.id
    assert team.entries["gac"].digest != team.entries["gac-gated"].digest
    with pytest.raises(SettingsError, match="nobody"):
        team.only(["nobody"])
    alone = team.only(["gac"])
    assert list(alone.engines) == ["smollm2-135m", "gemma3-270m"]


def test_questions_come_from_every_category() -> None:
    """A sample has each category, and first those that partners did not learn from."""
    some = questions(64)
    assert len(some) == 64
    assert len({question.category for question in some}) == 16
    more = questions(200)
    assert len({question.id for question in more}) == 200
    assert {question.id for question in questions(112)} <= {question.id for question in more}
    assert HELD_OUT == 8
