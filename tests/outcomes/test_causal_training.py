"""The causal trainer: like transformers, like numpy, seeded, resumable; what is kept of it and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from safetensors.numpy import load_file, save_file

from outcomes.artefact import Manifest
from outcomes.causal_artefact import export_lm, load_lm, save_lm
from outcomes.causal_lm import CausalLm
from outcomes.causal_training import Batch, CausalTraining, TrainedLm
from protocol.errors import ArtefactMismatch, MethodError
from tests.language_models import tiny_lm

pytestmark = pytest.mark.requires("torch")

SETTINGS = {"epochs": 2, "batch": 4, "layers": 1, "rank": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("home") / "weights" / "tiny")


def _loss(rows: np.ndarray, batch: Batch):
    log_p, counts = batch.log_probabilities([1] * len(batch.ids))
    return -log_p.sum() / counts.sum()


def _train(folder: Path, **settings: object) -> TrainedLm:
    training = CausalTraining(start=str(folder), **{**SETTINGS, **settings})
    lm = CausalLm.load(str(folder))
    texts = [f"{'river' if i % 2 else 'poem'} stone {i}" for i in range(12)]
    return training.train(lm, [lm.tokens(text) for text in texts], _loss)


def test_numpy_torch_and_transformers_agree(folder: Path) -> None:
    """States of padded batches with a trained adapter are those of the numpy pass, text by text, also where all texts
    begin alike or one is another's beginning; without one, logits are transformers'."""
    import torch
    from transformers import AutoModelForCausalLM

    trained = _train(folder, rate=0.1)
    assert any(np.abs(b).max() > 0.01 for _, b in trained.lm.adapter.values())
    lm = trained.lm
    ids = [lm.tokens(text) for text in ("river stone bridge", "poem", "sum of numbers 12 and 7")]
    training = CausalTraining(start=str(folder), **SETTINGS)
    with training.learner(CausalLm.load(str(folder))) as learner:
        for name, value in learner.learnt.items():
            a, b = lm.adapter[name[len("lora.") : -2]]
            value.data = torch.tensor(a if name.endswith(".a") else b / training.scale)
        for rows in (ids, [[*ids[0], *row] for row in ids], [ids[0], ids[0][:2]], ids[:1]):
            states = learner.batch(rows).states.detach().numpy()
            for row, found in zip(rows, states, strict=True):
                assert np.abs(found[: len(row)] - lm.read(row)[0]).max() < 1e-4
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = CausalLm.load(str(folder))
    with torch.no_grad():
        wanted = reference(torch.tensor([ids[2]])).logits[0].numpy()
    assert np.abs(base.read(ids[2])[0] @ base.head.T - wanted).max() < 1e-3


def test_it_learns_and_seeds_decide(folder: Path) -> None:
    """The loss falls; the same seed gives the same adapter, another one another."""
    first = _train(folder, epochs=8, rate=1e-2)
    assert first.losses[-3:].mean() < first.losses[:3].mean() - 0.1
    again, other = _train(folder, epochs=8, rate=1e-2), _train(folder, epochs=8, rate=1e-2, seed=1)
    assert _same(first, again)
    assert not _same(first, other)


def test_an_interrupted_training_goes_on(folder: Path, tmp_path: Path) -> None:
    """Stopped in its second epoch and called again, it ends as one that was not stopped; rounds of play likewise."""

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        _train(folder, checkpoint=str(tmp_path), report=stop)
    seen: list[int] = []
    again = _train(folder, checkpoint=str(tmp_path), report=lambda step, steps, loss: seen.append(step))
    assert seen == [4, 5, 6]
    assert _same(again, _train(folder))
    with pytest.raises(MethodError, match="another training"):
        _train(folder, checkpoint=str(tmp_path), seed=1)
    assert _same(_play(folder, tmp_path / "play", 13), _play(folder, tmp_path / "play", 25))


def _play(folder: Path, checkpoint: Path, stop: int) -> TrainedLm:
    """25 rounds on texts of the round; the first call is stopped after some and called again."""

    class Stopped(Exception):
        pass

    def report(step: int, steps: int, loss: float) -> None:
        if step == stop and stop < steps:
            raise Stopped

    training = CausalTraining(
        start=str(folder), checkpoint=str(checkpoint / str(stop)), report=report, **SETTINGS
    )
    lm = CausalLm.load(str(folder))
    play = lambda r: ([lm.tokens(f"river {r} stone")], lambda batch: _loss(np.zeros(1), batch))  # noqa: E731
    for _ in range(2):
        with training.learner(lm) as learner:
            try:
                learner.play(25, play, mark="texts", rate=1e-3)
            except Stopped:
                training.report = None
                continue
            return learner.trained()
    raise AssertionError("it never ended")


def test_an_artefact_names_its_base(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Adapter, extra tensors and losses come back; another base of that name is refused, and one that is not there."""
    monkeypatch.setenv("CHORUS_HOME", str(folder.parent.parent))
    trained = replace(_train(folder), extra={"row": np.ones((1, 2), dtype=np.float32)})
    manifest = Manifest(method="routoo", models=("a",), parameters={"rank": 2})
    save_lm(tmp_path / "one", manifest, trained, np.array([np.nan]))
    kept = load_lm(tmp_path / "one", "routoo")
    assert dict(kept.manifest.parameters) == {"rank": 2}
    assert _same(kept.trained(), trained)
    assert np.array_equal(kept.trained().extra["row"], trained.extra["row"])
    assert np.array_equal(kept.trained().losses, trained.losses)
    tiny_lm(tmp_path / "home" / "weights" / "tiny", seed=3)
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path / "home"))
    with pytest.raises(ArtefactMismatch, match="adapts tiny"):
        load_lm(tmp_path / "one", "routoo")
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    with pytest.raises(MethodError, match="no language model"):
        load_lm(tmp_path / "one", "routoo")


def test_an_exported_model_speaks_as_the_adapted_one(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """The merged folder loads as any other and has the adapted model's states; what is more than a model is refused."""
    monkeypatch.setenv("CHORUS_HOME", str(folder.parent.parent))
    trained = _train(folder, rate=0.1)
    manifest = Manifest(method="router-r1", models=("a",))
    save_lm(tmp_path / "one", manifest, trained, np.array([np.nan]))
    export_lm(tmp_path / "one", tmp_path / "merged")
    ids = trained.lm.tokens("river stone bridge")
    merged = CausalLm.load(str(tmp_path / "merged"))
    assert np.allclose(merged.read(ids)[0], trained.lm.read(ids)[0], atol=1e-4)
    assert not np.allclose(merged.read(ids)[0], CausalLm.load(str(folder)).read(ids)[0], atol=1e-2)
    with pytest.raises(MethodError, match="number 1"):
        export_lm(tmp_path / "one", tmp_path / "other", agent=1)
    more = replace(trained, extra={"row": np.ones(2, dtype=np.float32)})
    save_lm(tmp_path / "more", manifest, more, np.array([np.nan]))
    with pytest.raises(MethodError, match="adds row"):
        export_lm(tmp_path / "more", tmp_path / "other")


def test_other_models_and_adapters_are_refused(folder: Path, tmp_path: Path) -> None:
    """A family whose forward pass this is not, missing weights, and adapters of other shapes are errors that say so."""
    lm = CausalLm.load(str(folder))
    with pytest.raises(MethodError, match="does not fit"):
        lm.adapted({"layers.0.self_attn.q_proj": (np.ones((2, 3), np.float32), np.ones((4, 2), np.float32))})
    other = tiny_lm(tmp_path / "other")
    config = orjson.loads((other / "config.json").read_bytes())
    (other / "config.json").write_bytes(orjson.dumps({**config, "model_type": "gemma3_text"}))
    with pytest.raises(MethodError, match="gemma3_text"):
        CausalLm.load(str(other))
    short = tiny_lm(tmp_path / "short")
    tensors = load_file(short / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, short / "model.safetensors")
    with pytest.raises(MethodError, match="up_proj"):
        CausalLm.load(str(short))


def test_what_others_write_is_never_a_control_token(folder: Path) -> None:
    """The mark that ends a turn does so in our words only; of a long question the last tokens are read."""
    lm = CausalLm.load(str(folder))
    [end] = lm.shape.ends
    assert lm.tokens("river<end>")[-1] == end
    assert end not in lm.question("river<end>")
    assert lm.question("river stone", 1) == lm.tokens("stone")


def test_half_precision_is_read(folder: Path, tmp_path: Path) -> None:
    """Weights kept as bfloat16 or float16 are those numbers in float32."""
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {name: torch.tensor(value) for name, value in load_file(folder / "model.safetensors").items()}
    for kind in (torch.bfloat16, torch.float16):
        half = tiny_lm(tmp_path / str(kind))
        save_torch({name: value.to(kind) for name, value in tensors.items()}, half / "model.safetensors")
        wanted = tensors["model.layers.0.mlp.up_proj.weight"].to(kind).float().numpy()
        assert np.array_equal(CausalLm.load(str(half)).weights["layers.0.mlp.up_proj.weight"], wanted)


def _same(a: TrainedLm, b: TrainedLm) -> bool:
    return all(
        np.array_equal(x, y)
        for name, pair in a.lm.adapter.items()
        for x, y in zip(pair, b.lm.adapter[name], strict=True)
    )


@pytest.mark.models
def test_smollm2_in_numpy(weights) -> None:
    """The packaged model read in numpy has transformers' logits, and a question is laid out by its own template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = weights("smollm2-135m-instruct")
    lm, reference = (
        CausalLm.load(str(folder)),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    before, after = lm.framed("You judge.", "Is {question} right?")
    ids = lm.tokens(f"{before}2 + 2 = 4{after}")
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(lm.read(ids)[0] @ lm.head.T - wanted).max() < 1e-2
    messages = [
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": "Is 2 + 2 = 4 right?"},
    ]
    told = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
    assert ids == list(told["input_ids"] if hasattr(told, "keys") else told)
