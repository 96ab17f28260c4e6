<<<<<<< HEAD
"""From a fusion's settings to what the host serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.assemble import fusion_spec
from engines.host import FusionSpec
from ensembles.tokens.rlae import RLAE
from protocol.errors import SettingsError
<<<<<<< HEAD
from protocol.settings import Fusion, load_settings
=======
"""From settings to fusions."""

from __future__ import annotations

import pytest

from engines.assemble import fusion_spec
from ensembles.tokens.etr import ETR
from protocol.errors import SettingsError
from protocol.settings import Fusion
>>>>>>> toka
=======
from protocol.settings import Fusion
>>>>>>> hostx

MEMBERS = {"a": 0.5, "b": 0.3, "c": 0.2}


<<<<<<< HEAD
def _spec(**settings: Any) -> FusionSpec:
    return fusion_spec("duet", Fusion(members=MEMBERS, **settings))


def test_who_goes_on_without_whom() -> None:
    """By default an answer fails with its member and nobody is left out for load; settings change both."""
    plain = _spec()
    assert (plain.drop, plain.shed_above) == (False, None)
    spec = _spec(on_member_failure="drop", shed={"above": 3})
    assert (spec.drop, spec.shed_above, spec.keep) == (True, 3, (0,))
    assert _spec(main="b", shed={"above": 3}).keep == (1,)
    assert _spec(shed={"above": 3, "keep": ["c", "a"]}).keep == (2, 0)


@pytest.mark.parametrize("method", ["deepen", "spec-ensemble", "cool-fusion", "abe"])
@pytest.mark.parametrize("field", [{"on_member_failure": "drop"}, {"shed": {"above": 2}}])
def test_methods_that_need_all_members(method: str, field: dict[str, Any]) -> None:
    """A method in which every member has a part refuses, naming the setting."""
    with pytest.raises(SettingsError, match=rf"strategies.duet.fuse.{next(iter(field))}: {method} cannot"):
        _spec(method=method, **field)


def test_how_a_method_feeds_text_back() -> None:
    """Appended; in spans with the last word; where members take turns writing, what one missed as one text."""
    kinds = {method: _spec(method=method).feedback for method in ("gac", "cool-fusion", "etr")}
    assert kinds == {"gac": "append", "cool-fusion": "retail", "etr": "rejoin"}


def test_options_a_method_does_not_take_are_refused() -> None:
    """With the path of the setting that is wrong."""
    with pytest.raises(SettingsError, match=r"strategies.duet.fuse.options"):
        _spec(method="etr", options={"no_such": 1})


def test_strangers_are_not_kept() -> None:
    """Only members can go on writing."""
    with pytest.raises(SettingsError, match=r"shed\.keep: z"):
        _spec(shed={"above": 2, "keep": ["a", "z"]})


def test_the_encoder_of_a_policy(tmp_path: Path) -> None:
    """An embedder is a folder of weights, and told when it is none."""
    options = {"embedder": str(tmp_path)}
    with pytest.raises(SettingsError, match=r"options\.embedder"):
        _spec(method="rlae", options=options)
    (tmp_path / "weights.json").write_text("{}")
    spec = _spec(method="rlae", options={**options, "span": 4})
<<<<<<< HEAD
    assert spec.fusion == RLAE(str(tmp_path), str(tmp_path), 4)


def test_an_artefact_lies_beside_its_config(tmp_path: Path) -> None:
    """A method's artefact is found from the config's folder, wherever the process was started."""
    config = """
models: {a: {engine: {weights: x}}}
strategies: {s: {fuse: {method: rlae, members: {a: 1}, options: {artefact: mine/rlae, embedder: e, span: 3}}}}
"""
    (tmp_path / "config.yaml").write_text(config)
    fuse = load_settings(tmp_path / "config.yaml").strategies["s"].fuse
    assert fuse is not None
    assert fuse.options == {"artefact": str(tmp_path / "mine/rlae"), "embedder": "e", "span": 3}
=======
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
>>>>>>> toka
=======
    assert spec.fusion == RLAE(str(tmp_path), 4)
    with pytest.raises(SettingsError, match=r"fuse\.artefacts: No artefact"):
        _spec(method="rlae", options=options, artefacts={"policy": tmp_path / "none"})
>>>>>>> hostx
