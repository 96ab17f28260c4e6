"""Engines without room for all: members that wait for each other come out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.engine import Engine, EngineSpec
from engines.host import FusionSpec, Host
from ensembles.spans.sweetspan import SweetSpan
from ensembles.tokens.base import Ask, Decision, Mixture, Step
from ensembles.tokens.spec_ensemble import SpecEnsemble
from tests.engines.table_engine import LETTERS, PAIRS, TableEngine, answers
from tests.engines.test_byte_vocab import _tokenizer

VOCABS = {"x": LETTERS, "y": PAIRS}


class NarrowEngine(TableEngine):
    """Has room for one request at a time: the others wait, the first one that came is served."""

    crowded = False

    def forward(self) -> dict[str, torch.Tensor]:
        waiting = {name: self.live.pop(name) for name in list(self.live)[1:]}
        rows = super().forward()
        self.live |= waiting
        self.crowded = not rows and bool(waiting)
        return rows

    def counts(self) -> tuple[int, int]:
        return min(1, len(self.live)), max(0, len(self.live) - 1)


class OneAfterTheOther:
    """Hears `first` before it asks the other member, so that two of opposite order hold what the other one wants."""

    def __init__(self, first: int) -> None:
        self.first = first

    def decide(self, step: Step) -> Decision:
        for m in (self.first, 1 - self.first):
            if m not in step.logits:
                return Ask(frozenset({m}))
        return Mixture(sum(step.alphabet.project(m, row) / 2 for m, row in sorted(step.logits.items())))  # type: ignore[arg-type]


@pytest.mark.parametrize("wide", [True, False])
def test_members_that_hold_what_others_wait_for(tmp_path: Path, wide: bool) -> None:
    """All answers end, with the texts they have where there is room for everybody."""
    fusions = [
        FusionSpec("forth", ("x", "y"), (0.5, 0.5), OneAfterTheOther(0)),
        FusionSpec("back", ("x", "y"), (0.5, 0.5), OneAfterTheOther(1)),
        FusionSpec("spec", ("x", "y"), (0.5, 0.5), SpecEnsemble(drafts=2)),
        FusionSpec("sweet", ("x", "y"), (0.5, 0.5), SweetSpan(words=1), feedback="retail"),
    ]
    specs = []
    for name, vocab in VOCABS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(_tokenizer(vocab, "bytes", ("<eos>",)))
        specs.append(EngineSpec(name, tmp_path / name, max_model_len=64))
    engines: dict[str, TableEngine] = {}

    def load(spec: EngineSpec) -> Engine:
        kind = TableEngine if wide else NarrowEngine
        engines[spec.name] = kind(spec, len(VOCABS[spec.name]), len(engines))
        return engines[spec.name]  # type: ignore[return-value]

    host = Host(specs, fusions, load=load)
    host.start()
    prompts = [(1, 2), (2, 1), (3, 3)]
    alone = {model: [answers(host, model, [prompt])[0] for prompt in prompts] for model in host.fusion_specs}
    texts = _together(host, prompts)
    host.stop()
    assert texts == alone
    yielded = host.metrics().partition("\nchorus_engine_yielded_total ")[2].split()[0]
    assert (float(yielded) == 0) is wide
    assert not any(engine.live for engine in engines.values())


def _together(host: Host, prompts: list[tuple[int, ...]]) -> dict[str, list[str]]:
    """The answers of all fusions to all prompts, at once."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(host.fusion_specs)) as pool:
        asked = {model: pool.submit(answers, host, model, prompts) for model in host.fusion_specs}
        return {model: one.result() for model, one in asked.items()}
