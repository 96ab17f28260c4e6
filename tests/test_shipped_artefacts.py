"""What `config/local.yaml` serves is what its recipe makes of the outcomes kept beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascades.artefact import load_cascade
from outcomes.artefact import load_artefact, read_manifest
from outcomes.embedder import Embedder
from outcomes.process_labels import digest, graded, read_steps
from outcomes.process_reward import ProcessReward
from outcomes.table import read_table
from outcomes.train import train
from protocol.settings import load_settings

ROOT = Path(__file__).parent.parent
OUTCOMES = ROOT / "config" / "queries" / "everyday.outcomes.parquet"
SETTINGS = load_settings(ROOT / "config" / "local.yaml")


def test_outcomes_answer_the_committed_questions() -> None:
    """Every committed question has an outcome of both models, and no other question has."""
    table = read_table(OUTCOMES)
    asked = (ROOT / "config" / "queries" / "everyday.jsonl").read_text().splitlines()
    assert len(table.queries) == len(asked)
    assert not (table.score != table.score).any(), "a score is missing"
    assert set(table.models) == {"smollm2-135m", "gemma3-270m"}


@pytest.mark.models
def test_training_again_gives_the_shipped_router(weights, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """`make artefacts` reproduces the router: same data, same k, same stored queries."""
    route = SETTINGS.strategies["auto"].route
    assert route is not None
    embedder = Embedder.load(weights("all-minilm-l6-v2-int8"))
    again = train("knn-router", OUTCOMES, tmp_path / "router", embedder=embedder)
    shipped, tensors = load_artefact(route.artefact, method="knn-router")
    _, rebuilt = load_artefact(tmp_path / "router", method="knn-router")
    assert (again.data, again.parameters, again.embedder) == (
        shipped.data,
        shipped.parameters,
        shipped.embedder,
    )
    assert tensors.keys() == rebuilt.keys()
    assert all(tensors[name].shape == rebuilt[name].shape for name in tensors)


def test_the_shipped_cascade_was_fitted_not_typed() -> None:
    """The cascade's threshold comes with the card of the calibration that found it, on the same outcomes."""
    cascade = SETTINGS.strategies["cascade"].cascade
    assert cascade is not None
    _, _, rule, _ = load_cascade(cascade.artefact, cascade.method, cascade.stages)
    assert rule.thresholds[0] < 0
    assert read_manifest(cascade.artefact).metrics["queries"] == 256
    route = SETTINGS.strategies["auto"].route
    assert route is not None
    assert read_manifest(cascade.artefact).data == read_manifest(route.artefact).data


def test_the_shipped_reward_says_what_it_is_worth() -> None:
    """It was trained on the committed steps and answers, and its card has the figures that docs/spans.md tells."""
    steps = [*read_steps(ROOT / "config/queries/arithmetic.steps.jsonl.gz"), *graded(read_table(OUTCOMES))]
    manifest = read_manifest(ROOT / "config/artefacts/process-reward")
    assert manifest.data == digest(steps)
    assert manifest.metrics["trained_on"] + manifest.metrics["steps"] == len(steps)
    page = (ROOT / "docs" / "spans.md").read_text()
    for figure in ("auc", "auc_within_a_question"):
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*manifest.metrics[figure]) in page


@pytest.mark.models
def test_the_shipped_reward_runs() -> None:
    """With the encoder it names it gives every answer a number of its own in [0, 1]."""
    reward = ProcessReward.load(ROOT / "config/artefacts/process-reward")
    values = reward("What is the capital of France?", ["Paris", "I do not know.\n", ""])
    assert all(0 < value < 1 for value in values)
    assert len(set(values)) == 3


def test_local_models_have_a_price() -> None:
    """Every local model costs something, so that cost decisions mean something offline."""
    for name, model in SETTINGS.models.items():
        assert model.price is not None, name
        assert model.price.input_usd_per_token > 0
        assert model.price.output_usd_per_token > 0 or model.embedder
