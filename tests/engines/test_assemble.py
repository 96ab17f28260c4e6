"""From settings to fusions."""

from __future__ import annotations

import pytest

from engines.assemble import fusion_spec
from ensembles.tokens.etr import ETR
from protocol.errors import SettingsError
from protocol.settings import Fusion

MEMBERS = {"x": 0.5, "y": 0.5}


def test_methods_that_hand_over_read_what_they_missed_as_one_text() -> None:
    """What a method is decides how the text is fed back to its members."""
    spec = fusion_spec("expert", Fusion(method="etr", members=MEMBERS, options={"follow": 8}))
    assert isinstance(spec.fusion, ETR)
    assert (spec.fusion.follow, spec.feedback) == (8, "rejoin")
    kinds = {
        method: fusion_spec(method, Fusion(method=method, members=MEMBERS))
        for method in ("gac", "cool-fusion")
    }
    assert {method: kind.feedback for method, kind in kinds.items()} == {
        "gac": "append",
        "cool-fusion": "retail",
    }


def test_options_a_method_does_not_take_are_refused() -> None:
    """With the path of the setting that is wrong."""
    with pytest.raises(SettingsError, match=r"strategies.e.fuse.options"):
        fusion_spec("e", Fusion(method="etr", members=MEMBERS, options={"no_such": 1}))
