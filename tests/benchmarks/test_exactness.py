"""The verdicts of the comparison with plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.asking import Kept
from benchmarks.exactness.__main__ import compared
from benchmarks.exactness.plain import PlainText
from tests.engines.plain_loop import Fused


def heard(text: str, *steps: tuple[str, dict[str, float]]) -> dict[str, object]:
    """What a host said: the symbol of each step, and probabilities."""
    return {
        "text": text,
        "symbols": [symbol.encode().hex() for symbol, _ in steps],
        "steps": [[(one.encode().hex(), math.log(p)) for one, p in q.items()] for _, q in steps],
    }


def wrote(text: str, sure: int, *steps: dict[str, float]) -> PlainText:
    """What a plain loop wrote."""
    fused = [Fused([one.encode() for one in q], np.array(list(q.values()))) for q in steps]
    return PlainText.from_json(PlainText.of(text.encode(), sure, fused).as_json())


@pytest.mark.parametrize(
    ("plain", "sure", "verdict"),
    [("a cat", 5, "equal"), ("a dog", 2, "near tie"), ("a dog", 3, "different"), ("a ca", 4, "different")],
)
def test_verdicts(plain: str, sure: int, verdict: str) -> None:
    """Texts are equal, or part behind what rounding left open, or differ."""
    assert compared(heard("a cat"), wrote(plain, sure), in_spans=False)["verdict"] == verdict


def test_a_span_may_end_later() -> None:
    """In spans the host's text is cut at its length, the plain one at a span's end."""
    assert compared(heard("a cat"), wrote("a cat sat", 9), in_spans=True)["verdict"] == "equal"


def test_distributions_are_compared_on_the_same_text() -> None:
    """The largest difference counts what the plain loop calls impossible, and stops where the texts part."""
    ours = heard("ab", ("a", {"a": 0.6, "x": 0.01}), ("b", {"b": 0.9}), ("c", {"c": 0.1}))
    found = compared(
        ours, wrote("ac", 1, {"a": 0.6, "y": 0.4}, {"c": 0.8, "b": 0.2}, {"c": 0.9}), in_spans=False
    )
    assert found["steps"] == 2
    assert found["difference"] == pytest.approx(0.7)


def test_slices_find_what_earlier_ones_kept(tmp_path: Path) -> None:
    """A value that was kept is there for the next run."""
    Kept(tmp_path / "deep" / "kept.jsonl").keep("a/1", {"x": [1, 2]})
    again = Kept(tmp_path / "deep" / "kept.jsonl")
    assert "a/1" in again
    assert again["a/1"] == {"x": [1, 2]}
    assert "a/2" not in again
