"""Training and evaluating: an artefact that carries an honest metrics card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes.artefact import load_router, read_manifest
from outcomes.assignment import Knob
from outcomes.evaluate import evaluate, evaluate_router
from outcomes.table import OutcomeTable, split
from outcomes.train import train
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from tests.encoders import tiny_encoder
from tests.language_models import tiny_lm
from tests.routers.recorded import worded_table

TOPICS = ("river", "number", "word", "colour")


class TopicEmbedder:
    """Embeds a text as its topic, a little off: what a good embedder does, without weights."""

    id = "topics@1"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        basis = np.eye(8)[[TOPICS.index(text.split()[0]) for text in texts]]
        noise = [np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]
        vectors = basis + 0.05 * np.array(noise)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _table(n: int = 480) -> OutcomeTable:
    """Each of two models knows two of four topics; a third knows none and costs the least."""
    topic = np.arange(n) % 4
    rng = np.random.default_rng(0)
    ability = np.array([[0.9, 0.2, 0.05], [0.9, 0.2, 0.05], [0.2, 0.9, 0.05], [0.2, 0.9, 0.05]])
    score = (rng.random((n, 3)) < ability[topic]).astype(float)
    cost = rng.uniform(0.9, 1.1, (n, 3)) * [4e-6, 6e-6, 1e-6]
    texts = [f"{TOPICS[t]} question {i}" for i, t in enumerate(topic)]
    return OutcomeTable.of_matrices(
        ("left", "right", "none"), texts, score, cost, categories=[TOPICS[t] for t in topic]
    )


def test_training_writes_a_complete_artefact(tmp_path: Path) -> None:
    """Method, models, embedder, data hash, card, time and knob are in the manifest, and the router loads."""
    table = _table()
    manifest = train("knn", table, tmp_path, embedder=TopicEmbedder())
    assert manifest == read_manifest(tmp_path)
    assert manifest.method == "knn-router"
    assert manifest.models == table.models
    assert manifest.embedder == "topics@1"
    assert manifest.data == table.digest()
    assert manifest.created.startswith("20")
    assert manifest.metrics["queries"] == len(split(table)[1])
    assert Knob.parse(manifest.knob).lam(0.5) > 0
    assert load_router(tmp_path, models=table.models, embedder="topics@1")[0] == manifest


def test_the_card_shows_what_routing_bought(tmp_path: Path) -> None:
    """Where models differ by topic the router beats every single model and random, and no one beats the
    oracle."""
    train("knn-router", _table(), tmp_path, embedder=TopicEmbedder())
    card = evaluate(tmp_path, _table(), embedder=TopicEmbedder())
    rows = {row.name: row for row in card.rows}
    best = rows["router, quality 1"]
    assert best.gain_low > 0.2
    assert best.score_low > rows["random"].score_high
    assert all(row.score <= rows["oracle"].score for row in card.rows)
    assert rows["cheapest right"].score == rows["oracle"].score
    assert rows["router, quality 0"].shares["none"] == 1.0
    assert sum(best.shares.values()) == pytest.approx(1.0)
    costs = [rows[f"router, quality {q:g}"].cost_usd for q in (0, 0.25, 0.5, 0.75, 1)]
    assert costs == sorted(costs)
    assert card.aiq > card.aiq_singles
    assert card.categories["river"]["left"] > card.categories["river"]["right"]
    assert orjson.loads(orjson.dumps(card.wire())) == read_manifest(tmp_path).metrics


def test_training_never_sees_the_test_part(tmp_path: Path) -> None:
    """Scrambling the held-out outcomes changes the card and nothing that was learnt."""
    table = _table()
    train("knn", table, tmp_path / "a", embedder=TopicEmbedder())
    held_out = set(split(table)[1].query_ids)
    score = table.score.copy()
    score[[id in held_out for id in table.query_ids]] = 0.0
    train("knn", replace(table, score=score), tmp_path / "b", embedder=TopicEmbedder())
    tensors = [(tmp_path / name / "tensors.safetensors").read_bytes() for name in "ab"]
    assert tensors[0] == tensors[1]
    manifests = [read_manifest(tmp_path / name) for name in "ab"]
    assert manifests[0].knob == manifests[1].knob
    assert manifests[0].data != manifests[1].data


def test_evaluation_is_reproducible(tmp_path: Path) -> None:
    """The same artefact and table give the same card, to the last bound."""
    train("knn", _table(), tmp_path, embedder=TopicEmbedder())
    assert evaluate(tmp_path, _table(), embedder=TopicEmbedder()) == evaluate(
        tmp_path, _table(), embedder=TopicEmbedder()
    )


def test_pairs_get_routellms_figures(tmp_path: Path) -> None:
    """For two models the card has APGR and CPT(50 %), better than a random router's 0.5."""
    train("knn", _table(), tmp_path, embedder=TopicEmbedder(), models=("left", "right"))
    card = evaluate(tmp_path, _table(), embedder=TopicEmbedder())
    assert card.models == ("left", "right")
    assert card.apgr is not None
    assert card.apgr > 0.5
    assert card.cpt50 < 0.5


def test_missing_outcomes_and_costs_are_unknown_not_zero() -> None:
    """A table without costs still gives scores; cost, AIQ and the cheapest-right oracle are left out."""
    from routers.knn_router import KnnRouter

    table = _table()
    blind = replace(table, cost_usd=np.full_like(table.cost_usd, np.nan))
    blind = blind.embedded(TopicEmbedder().embed(blind.queries.texts))
    card = evaluate_router(KnnRouter(20).fit(blind), blind, None)
    rows = {row.name: row for row in card.rows}
    assert rows["left"].cost_usd is None
    assert card.aiq is None
    assert "cheapest right" not in rows
    assert rows["router, quality 1"].score > rows["left"].score


def test_what_cannot_be_trained_says_why(tmp_path: Path) -> None:
    """No embedder, an unknown method, a file to write to, and too few queries are errors with the reason."""
    table, embedder = _table(), TopicEmbedder()
    with pytest.raises(MethodError, match="embedder"):
        train("knn", table, tmp_path)
    with pytest.raises(SettingsError, match="knn-router"):
        train("knn-ruoter", table, tmp_path, embedder=embedder)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is a file"):
        train("knn", table, tmp_path / "file", embedder=embedder)
    with pytest.raises(MethodError, match="too few"):
        train("knn", table.take(slice(0, 2)), tmp_path, embedder=embedder)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"neighbours": 3}, "no option 'neighbours'; there are k, protocol"),
        ({"k": "three"}, "k of 'three'.*int"),
        ({"k": True}, "k of True.*int"),
        ({"lam": "2"}, "lam of '2'.*float"),
        ({"protocol": "vote"}, "'utility', 'selection'"),
        ({"k": 0}, "cannot be trained with {'k': 0}"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, option: dict[str, object], told: str) -> None:
    """One it does not have, of another type, not among its words, out of bounds: each a `MethodError`, nothing
    written."""
    with pytest.raises(MethodError, match=told):
        train("knn", _table(60), tmp_path / "out", embedder=TopicEmbedder(), options=option)
    assert not (tmp_path / "out").exists()


def test_descriptions_reach_the_methods_that_read_them(tmp_path: Path) -> None:
    """Their vectors stand beside the query's in rtr's input; a method that reads none refuses them."""
    described = {"left": "river and number", "right": "word and colour"}
    train("rtr", _table(), tmp_path, embedder=TopicEmbedder(), descriptions=described)
    tags = load_router(tmp_path)[1].tags_
    assert tags.shape == (3, 8 + 3)
    assert np.allclose(tags[:2, :8], TopicEmbedder().embed(list(described.values())))
    assert not tags[2, :8].any()
    with pytest.raises(MethodError, match="reads no descriptions"):
        train("knn", _table(), tmp_path, embedder=TopicEmbedder(), descriptions=described)


def test_evaluating_with_another_embedder_is_refused(tmp_path: Path) -> None:
    """Vectors of another embedder would make the estimates meaningless without any error."""
    train("knn", _table(), tmp_path, embedder=TopicEmbedder())
    other = TopicEmbedder()
    other.id = "topics@2"
    with pytest.raises(ArtefactMismatch, match=r"topics@1.*topics@2"):
        evaluate(tmp_path, _table(), embedder=other)
    with pytest.raises(MethodError, match="topics@1"):
        evaluate(tmp_path, _table())


@pytest.mark.requires("torch")
def test_an_encoder_is_trained_by_the_same_call(tmp_path: Path) -> None:
    """No embedder is asked for, every step is told, and the artefact stands alone: its start may be gone."""
    start, told = tiny_encoder(tmp_path / "tiny"), []
    options = {"start": str(start), "epochs": 1}
    train(
        "selectllm",
        worded_table(200),
        tmp_path / "out",
        options=options,
        report=lambda *step: told.append(step),
    )
    assert [step for step, _, _ in told] == list(range(1, told[0][1] + 1))
    shutil.rmtree(start)
    manifest, router = load_router(tmp_path / "out", models=("m0", "m1", "m2"))
    assert manifest.knob is not None
    assert manifest.embedder == ""
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert router.estimate(worded_table(4).queries).quality.shape == (4, 3)


@pytest.mark.requires("torch")
def test_a_language_model_is_trained_by_the_same_call(tmp_path: Path, monkeypatch) -> None:
    """Its steps are told too; the artefact is what was learnt, far smaller than the base it names and needs."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path / "home"))
    base, told = tiny_lm(tmp_path / "home" / "weights" / "tiny", dimensions=64), []
    options = {"start": "tiny", "epochs": 1, "layers": 1, "rank": 2}
    train(
        "routoo", worded_table(80), tmp_path / "out", options=options, report=lambda *step: told.append(step)
    )
    assert [step for step, _, _ in told] == list(range(1, told[0][1] + 1))
    manifest, router = load_router(tmp_path / "out", models=("m0", "m1", "m2"))
    assert manifest.parameters["base"]["name"] == "tiny"
    assert router.estimate(worded_table(4).queries).quality.shape == (4, 3)
    sizes = [
        (folder / name).stat().st_size
        for folder, name in ((tmp_path / "out", "tensors.safetensors"), (base, "model.safetensors"))
    ]
    assert sizes[0] < sizes[1] / 4
