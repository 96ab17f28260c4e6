"""What penalties and biases make of a distribution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.host import FusionSpec
from engines.penalties import Penalties
from ensembles.tokens.gac import GaC
from ensembles.tokens.spec_ensemble import SpecEnsemble
from ensembles.tokens.unite import UniTE
from tests.engines.table_engine import LETTERS, PAIRS, answers, host_of

Z = torch.tensor([1.0, -2.0, 3.0, 0.5])


def test_nothing_asked_is_nothing() -> None:
    """Without options there are no penalties, whatever stands in the prompt."""
    assert Penalties.of({}, (1, 2)) is None
    assert Penalties.of({"top_k": 3}, (1, 2)) is None


def test_presence_and_frequency() -> None:
    """Presence is taken off once, frequency each time, and only from what was written."""
    penalties = Penalties.of({"presence_penalty": 0.5, "frequency_penalty": 0.25}, (3,))
    assert penalties is not None
    assert penalties.apply(Z, {0: 1, 1: 4}).tolist() == pytest.approx([0.25, -3.5, 3.0, 0.5])
    assert Z.tolist() == [1.0, -2.0, 3.0, 0.5]


def test_repetition_counts_the_prompt_too() -> None:
    """It pushes towards less likely on either side of zero, in prompt and text alike, however often."""
    penalties = Penalties.of({"repetition_penalty": 2.0}, (1,))
    assert penalties is not None
    assert penalties.apply(Z, {2: 5}).tolist() == [1.0, -4.0, 1.5, 0.5]


def test_biases_are_for_named_positions() -> None:
    """A bias of an id goes to the id's place; of a restricted distribution, to where that stands."""
    penalties = Penalties.of({"logit_bias": {7: 2.0, 9: 1.0}}, (), lambda i: i - 7)
    assert penalties is not None
    assert penalties.apply(Z, {}).tolist() == [3.0, -2.0, 4.0, 0.5]
    assert penalties.apply(Z, {}, torch.tensor([5, 2, 8, 1])).tolist() == [1.0, -1.0, 3.0, 0.5]


def test_fused_texts_are_penalised(tmp_path: Path) -> None:
    """What must not come never does, what stands there comes less often, and drafts change neither."""
    members = {"x": (LETTERS, 1), "y": (PAIRS, 2)}
    fusions = [
        FusionSpec(name, ("x", "y"), (0.5, 0.5), method)
        for name, method in {"gac": GaC(), "unite": UniTE(), "spec": SpecEnsemble(drafts=2)}.items()
    ]
    host, _ = host_of(tmp_path, members, fusions)
    prompts = [(1, 2), (3, 1), (2, 2, 1)]
    for name in ("gac", "unite", "spec"):
        plain = answers(host, name, prompts)
        without_b = answers(host, name, prompts, extra={"logit_bias": {2: -100.0}})
        assert any("b" in text.replace("ab", "") for text in plain)
        assert not any("b" in text.replace("ab", "") for text in without_b)
        varied = answers(host, name, prompts, extra={"frequency_penalty": 2.0, "logit_bias": {0: -100.0}})
        assert all({"a", "b", "c"} <= set(text) for text in varied)
    options = {"frequency_penalty": 1.0, "presence_penalty": -0.5, "repetition_penalty": 1.2}
    assert answers(host, "spec", prompts, extra=options) == answers(host, "gac", prompts, extra=options)
    host.stop()
