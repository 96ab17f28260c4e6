"""Answers written on, and prompts read, many at once, for labelling and measuring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.assemble import fusion_spec
from engines.host import FusionSpec
from engines.rollouts import SURVEY, Rollouts, Surveyor
from engines.templates import Rendered
from ensembles.spans.ensemble_hub import save_references
from protocol.errors import SettingsError
from protocol.settings import Fusion
from tests.engines.tiny import TinyModel, tiny_host


@dataclass
class Plain:
    """A prompt is the question."""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        return Rendered(messages[-1]["content"])


@pytest.fixture
def rollouts(tmp_path: Path) -> Iterator[Rollouts]:
    """The two tiny models."""
    team = FusionSpec(SURVEY, ("one", "two"), (1.0, 1.0), Surveyor(), feedback="retail")
    host = tiny_host(tmp_path, [team], seed=4).host
    with Rollouts(host, {"one": Plain(), "two": Plain()}, temperature=0.0) as found:  # type: ignore[dict-item]
        yield found
    assert not host.alive


def test_answers_are_written_on(rollouts: Rollouts) -> None:
    """Each goes on from what stands there, in order, and ends at its bound: an answer cut in two is itself."""
    (whole,) = rollouts.write("one", [("abc", "", 12)])
    model = TinyModel("one", 4)
    ids, kept = model.encode(b"a") + model.encode(b"b") + model.encode(b"c"), []
    for _ in range(12):
        row = model.row([*ids, *kept])
        row[model.mute[0]] = -float("inf")
        kept.append(int(row.argmax()))
        if kept[-1] in model.eos:
            break
    assert whole == b"".join(model.emits[i] or b"" for i in kept).decode()
    first, again = rollouts.write("one", [("abc", "", 3), ("abc", "", 12)])
    assert whole.startswith(first)
    assert again == whole


def test_questions_are_read_by_all(rollouts: Rollouts) -> None:
    """Every model's reading of every question, in order, a question twice being one."""
    found = rollouts.survey(["abc ab", "cab", "abc ab"])
    assert {name: len(readings) for name, readings in found.items()} == {"one": 2, "two": 2}
    assert found["one"][0].perplexity != found["one"][1].perplexity
    assert all(
        reading.perplexity > 1 and 0 < reading.confidence < 1 for each in found.values() for reading in each
    )


def test_a_method_is_given_its_parts(tmp_path: Path, rollouts: Rollouts) -> None:
    """What a config names is loaded when it is read: a part that is missing or not wanted is said with its place."""
    save_references(tmp_path, rollouts.survey(["abc ab", "cab"]), "x")
    asked = {"method": "ensemble-hub", "members": {"one": 1.0, "two": 1.0}}
    with pytest.raises(
        SettingsError, match=r"strategies\.hub\.fuse\.artefacts: ensemble-hub needs artefacts"
    ):
        fusion_spec("hub", Fusion(**asked, artefacts={"reference": tmp_path}))
    with pytest.raises(SettingsError, match=r"strategies\.hub\.fuse\.artefacts: .*ensemble-hub"):
        fusion_spec("hub", Fusion(**asked, artefacts={"reward": tmp_path}))
    with pytest.raises(SettingsError, match="cool-fusion takes none"):
        fusion_spec("cool", Fusion(**{**asked, "method": "cool-fusion"}, artefacts={"reward": tmp_path}))
