"""From settings to fusions: what a method has learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.assemble import fusion_spec
from ensembles.tokens.etr import ETR
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from protocol.settings import Fusion

MEMBERS = {"x": 0.5, "y": 0.5}


def test_a_learnt_part_is_loaded(tmp_path: Path) -> None:
    """`artefact` and `options` meet in the fusion, and a method that hands over re-reads what a member has missed."""
    ETR(torch.ones(1, 4)).save(tmp_path, tuple(MEMBERS))
    spec = fusion_spec(
        "expert", Fusion(method="etr", members=MEMBERS, artefact=tmp_path, options={"follow": 8})
    )
    assert isinstance(spec.fusion, ETR)
    assert spec.fusion.follow == 8
    assert spec.fusion.experts is not None
    assert torch.equal(spec.fusion.experts, torch.ones(1, 4))
    assert spec.feedback == "rejoin"
    assert fusion_spec("duet", Fusion(method="gac", members=MEMBERS)).feedback == "append"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """An artefact missing, not needed, of other members or not there, and options the method does not take."""
    ETR(torch.ones(1, 4)).save(tmp_path, tuple(MEMBERS))
    with pytest.raises(SettingsError, match=r"strategies.e.fuse.artefact: etr needs one; `chorus teach`"):
        fusion_spec("e", Fusion(method="etr", members=MEMBERS))
    with pytest.raises(SettingsError, match=r"strategies.e.fuse.artefact: gac has nothing to learn"):
        fusion_spec("e", Fusion(method="gac", members=MEMBERS, artefact=tmp_path))
    with pytest.raises(ArtefactMismatch, match="x, y"):
        fusion_spec("e", Fusion(method="etr", members={"y": 1, "x": 1}, artefact=tmp_path))
    with pytest.raises(MethodError, match="No artefact"):
        fusion_spec("e", Fusion(method="etr", members=MEMBERS, artefact=tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"strategies.e.fuse.options"):
        fusion_spec("e", Fusion(method="etr", members=MEMBERS, artefact=tmp_path, options={"no_such": 1}))
