"""The verdicts of the comparison with plain loops."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.asking import Kept
from benchmarks.exactness.__main__ import compared
from benchmarks.exactness.plain import Forward, PlainText, Together, forward
from benchmarks.machine import revision
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


def test_what_was_found_of_which_code(tmp_path: Path) -> None:
    """The states of the code that were asked, in the order in which they were."""
    kept = Kept(tmp_path / "kept.jsonl")
    for key in (
        "answer/gac/x/12/old/1",
        "answer/gac/x/12/new/1",
        "answer/gac/x/12/old/2",
        "answer/eva/x/12/9/1",
    ):
        kept.keep(key, 1)
    assert kept.part("answer", "gac", -2) == ["old", "new"]


def test_a_revision_is_of_its_folders() -> None:
    """The same sources have the same digest, others another one; the commit is a name, marked where files changed."""
    assert revision("engines").digest == revision("engines").digest != revision("ensembles").digest
    assert revision("engines").commit


@dataclass(eq=False)
class Tiny:
    """A random Llama where a plain model is wanted."""

    model: torch.nn.Module


def test_texts_in_one_forward_are_texts_alone() -> None:
    """Of different length, from the start and from caches: rows, states and what comes next are as in forwards of
    their own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    tiny = Tiny(LlamaForCausalLM(config).eval())
    begun, more = [[1, 2, 3, 4], [5, 6], [7]], [[8], [9, 10, 11], [12, 13]]
    first = forward(tiny, [(ids, []) for ids in begun])  # type: ignore[arg-type]
    second = forward(tiny, [(ids, cache) for ids, (_, _, cache) in zip(more, first, strict=True)])  # type: ignore[arg-type]
    for a, b, (row, states, _) in zip(begun, more, second, strict=True):
        with torch.no_grad():
            alone = tiny.model(torch.tensor([a + b]), output_hidden_states=True)
        assert torch.allclose(row, alone.logits[0, -1], atol=1e-5)
        assert torch.allclose(states, torch.stack([one[0, -1] for one in alone.hidden_states]), atol=1e-5)


def test_threads_wait_for_one_another() -> None:
    """What all want is computed at once, one that leaves is waited for no more, and a failure reaches everybody."""
    together, sizes = Together(), list[int]()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    def write(times: int) -> None:
        try:
            for _ in range(times):
                with pytest.raises(RuntimeError, match="no memory"):
                    together.compute(Forward(model, (1,), []))  # type: ignore[arg-type]
                sizes.append(1)
        finally:
            together.leave()

    model = Tiny(broken)  # type: ignore[arg-type]
    threads = [threading.Thread(target=write, args=(times,)) for times in (1, 3, 2)]
    for thread in threads:
        together.join()
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(sizes) == 6
