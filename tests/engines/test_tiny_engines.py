"""Real engines of tiny models: a KV cache that is far too small for all that is asked at once, and steps that fail."""

from __future__ import annotations

import itertools
import queue
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from engines.engine import EngineSpec
from engines.generation import End, Event, Failure, Generation, Piece, Sampling
from engines.host import FusionSpec, Host
from ensembles.tokens.gac import GaC
from ensembles.tokens.spec_ensemble import SpecEnsemble
from tests.engines.table_engine import answers
from tests.language_models import tiny_lm

pytestmark = pytest.mark.models

BLOCK = 128
"""Tokens in a block of vLLM's KV cache on a CPU."""
LENGTH, ASKED, ANSWER = 2 * BLOCK, 12, 150
BYTES_PER_TOKEN = 2 * 2 * 2 * 32 * 4
"""Of a tiny model's cache: keys and values, two layers of two heads of 32, float32."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Two engines whose caches have five free blocks, where each answer comes to need two."""
    folder = tmp_path_factory.mktemp("tiny")
    gib = 6 * BLOCK * BYTES_PER_TOKEN / 2**30
    specs = [
        EngineSpec(
            name,
            tiny_lm(folder / name, dimensions=128, heads=4, kv_heads=2, seed=seed),
            "float32",
            LENGTH,
            gib,
            8,
            32,
        )
        for seed, name in enumerate(("x", "y"))
    ]
    fusions = [
        FusionSpec("gac", ("x", "y"), (0.5, 0.5), GaC()),
        FusionSpec("gated", ("x", "y"), (0.5, 0.5), GaC(threshold=0.02)),
        FusionSpec("turned", ("y", "x"), (0.5, 0.5), GaC(threshold=0.02)),
        FusionSpec("spec", ("x", "y"), (0.5, 0.5), SpecEnsemble(drafts=3)),
        FusionSpec("drop", ("x", "y"), (0.5, 0.5), GaC(), drop=True),
    ]
    host = Host(specs, fusions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM and its dependencies warn while they are imported
        host.start()
    yield host
    host.stop()


@pytest.mark.parametrize("models", [("gac",), ("gated", "turned"), ("spec",)], ids="-".join)
def test_answers_survive_preemption(host: Host, models: tuple[str, ...]) -> None:
    """Requests whose tokens do not fit together, and members that join late in opposite orders, all end, with the texts
    that each has alone."""
    prompts = [[5 + n, 7 + n, 9] for n in range(ASKED)]
    # Drawn, since a random model's likeliest text is one word over and over; drafts are drawn in an order of their own.
    drawn = {"temperature": 0.0 if models == ("spec",) else 1.0, "seed": 7}
    bound = {"max_tokens": ANSWER, "extra": {"logit_bias": {1: -100.0}}, **drawn}
    for model in models:
        alone = [answers(host, model, [prompt], **bound)[0] for prompt in prompts]
        assert answers(host, model, prompts, **bound) == alone
    while any(sum(counts) for counts in host.counts().values()):
        time.sleep(0.01)  # what ended is forgotten a moment after its end is told


@pytest.mark.parametrize("broken", ["execute_model", "sample_tokens"])
def test_an_engine_goes_on_after_a_step_that_failed(
    host: Host, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Who is in it fails, or writes on without it; what comes later gets the text that it always got."""
    prompts = [[5 + n, 7, *range(9, 60), 11 + n] for n in range(3)]
    bound = {"max_tokens": 24, "extra": {"logit_bias": {1: -100.0}}, "temperature": 1.0, "seed": 7}
    before = {model: answers(host, model, prompts, **bound) for model in ("gac", "x", "y")}
    executor = host._engines["y"]._core.model_executor
    whole, steps = getattr(executor, broken), itertools.count()

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        if next(steps) == 9:
            raise RuntimeError("the device is lost")
        return whole(*args, **kwargs)

    monkeypatch.setattr(executor, broken, fail_once)
    end = _end(host, "drop", prompts[0], **bound)
    assert isinstance(end, End)
    (out,) = end.left_out
    assert (out.model, out.why) == ("y", "failed")
    assert out.at > 0
    assert end.members[0].completion_tokens == 24 > end.members[1].completion_tokens
    steps = itertools.count()
    failed = _end(host, "gac", prompts[0], **bound)
    assert isinstance(failed, Failure)
    assert failed.error.status == 503
    assert {model: answers(host, model, prompts, **bound) for model in before} == before


def _end(host: Host, model: str, prompt: list[int], **sampling: Any) -> Event:
    """What an answer ends with."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    each = (tuple(prompt),) * len(host.members_of(model))
    host.submit(Generation(f"{model}-end", model, each, Sampling(**sampling)), events.put)
    while isinstance(event := events.get(timeout=60), Piece):
        pass
    return event
