"""What all requests to a team have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.host import FusionSpec
from ensembles.tokens.abe import ABE
from ensembles.tokens.base import Fusion, Search
from ensembles.tokens.cp_delta import CPDelta
from ensembles.tokens.gac import GaC
from ensembles.tokens.spec_ensemble import SpecEnsemble
from ensembles.tokens.unite import UniTE
from tests.engines.table_engine import LETTERS, PAIRS, answers, host_of

PROMPTS = [(1 + i % 3, 1 + i // 3) for i in range(9)]
METHODS = {"gac": GaC(), "unite": UniTE(), "cp-delta": CPDelta(), "spec": SpecEnsemble(), "abe": ABE(2)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_weights_of_a_request(tmp_path: Path, method: Fusion | Search) -> None:
    """They take the place of the fusion's own, for this request alone and whatever their sum."""
    members = {"x": (LETTERS, 1), "y": (PAIRS, 2)}
    fusions = [
        FusionSpec(f"{a}-{b}", ("x", "y"), (a, b), method) for a, b in ((0.5, 0.5), (0.9, 0.1), (0.1, 0.9))
    ]
    host, _ = host_of(tmp_path, members, fusions)
    even = answers(host, "0.5-0.5", PROMPTS)
    first, second = answers(host, "0.9-0.1", PROMPTS), answers(host, "0.1-0.9", PROMPTS)
    assert len({tuple(even), tuple(first), tuple(second)}) > 1
    assert answers(host, "0.5-0.5", PROMPTS, (9.0, 1.0)) == first
    assert answers(host, "0.5-0.5", PROMPTS, (0.2, 1.8)) == second
    assert answers(host, "0.5-0.5", PROMPTS) == even
    host.stop()
