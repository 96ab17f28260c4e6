"""From a fusion's settings to what the host serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.assemble import engine_specs, fusion_spec
from engines.engine import EngineSpec
from engines.host import FusionSpec
from ensembles.tokens.rlae import RLAE
from protocol.errors import SettingsError
from protocol.settings import Fusion, Settings

MEMBERS = {"a": 0.5, "b": 0.3, "c": 0.2}


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
    """An embedder is a folder of weights, and told when it is none; so is an artefact."""
    options = {"embedder": str(tmp_path)}
    with pytest.raises(SettingsError, match=r"options\.embedder"):
        _spec(method="rlae", options=options)
    (tmp_path / "weights.json").write_text("{}")
    assert _spec(method="rlae", options={**options, "span": 4}).fusion == RLAE(str(tmp_path), 4)
    with pytest.raises(SettingsError, match=r"fuse\.artefacts: No artefact"):
        _spec(method="rlae", options=options, artefacts={"policy": tmp_path / "none"})


@pytest.mark.parametrize(
    ("method", "part"), [("citer", "router"), ("etr", "experts"), ("rlae", "policy"), ("mot", "mixture")]
)
def test_a_part_is_called_as_its_method_calls_it(method: str, part: str, tmp_path: Path) -> None:
    """A misspelt part, and one of a method that learns nothing, are faults of the settings."""
    with pytest.raises(SettingsError, match=rf"fuse\.artefacts: {method} has a {part}, no x"):
        _spec(method=method, artefacts={"x": tmp_path})
    with pytest.raises(SettingsError, match=r"fuse\.artefacts: gac takes none"):
        _spec(method="gac", artefacts={part: tmp_path})


def test_ranks_share_heads_evenly_and_are_as_many_for_all(tmp_path: Path) -> None:
    """Both faults name the setting, before anything is loaded."""

    def specs(**ranks: int) -> list[EngineSpec]:
        models = {}
        for name, count in ranks.items():
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
            (folder / "config.json").write_text('{"num_attention_heads": 12}', encoding="utf-8")
            models[name] = {"engine": {"weights": str(folder), "tensor_parallel": count}}
        return engine_specs(Settings.model_validate({"models": models}))

    assert [spec.tensor_parallel for spec in specs(a=3, b=1, c=3)] == [3, 1, 3]
    with pytest.raises(
        SettingsError, match=r"models\.b\.engine\.tensor_parallel: 5 ranks cannot share the 12"
    ):
        specs(a=1, b=5)
    models = {"a": {"engine": {"weights": str(tmp_path / "a"), "tensor_parallel": 2, "device": "cuda:1"}}}
    with pytest.raises(SettingsError, match=r"models\.a\.engine\.device: .* Leave the number out"):
        engine_specs(Settings.model_validate({"models": models}))
    with pytest.raises(SettingsError, match=r"the numbers have to be the same or 1, and are a 2, b 4"):
        specs(a=2, b=4)
