"""From a fusion's settings to what the host serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.assemble import fusion_spec
from engines.host import FusionSpec
from ensembles.tokens.rlae import RLAE
from protocol.errors import SettingsError
from protocol.settings import Fusion

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
    assert spec.fusion == RLAE(str(tmp_path), 4)
    with pytest.raises(SettingsError, match=r"fuse\.artefacts: No artefact"):
        _spec(method="rlae", options=options, artefacts={"policy": tmp_path / "none"})
