"""The encoder trainer: it learns, it is seeded, and an interrupted training ends where an uninterrupted one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.encoder import TrainedEncoder
from outcomes.encoder_losses import multi_label
from outcomes.encoder_training import EncoderTraining
from protocol.errors import MethodError
from tests.encoders import tiny_encoder

pytestmark = pytest.mark.requires("torch")

TEXTS = [f"{'river' if i % 2 else 'poem'} question number {i}" for i in range(64)]
LABEL = np.array([[float(i % 2)] for i in range(64)])


def _train(folder: Path, **settings: object) -> TrainedEncoder:
    training = EncoderTraining(start=str(folder), max_tokens=16, **{"epochs": 3, "batch": 8, **settings})
    loss = lambda rows, out, _: multi_label(LABEL[rows], out)  # noqa: E731
    return training.train(training.starting_encoder(), TEXTS, 1, loss)


def _alike(a: TrainedEncoder, b: TrainedEncoder) -> bool:
    return all(np.array_equal(value, b.tensors()[name]) for name, value in a.tensors().items())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"), layers=2)


def test_it_learns(tiny: Path) -> None:
    """Told by one word which texts are right, it separates all of them, and its loss falls."""
    trained = _train(tiny, epochs=12, rate=1e-3, head_rate=1e-2)
    assert ((trained(TEXTS) > 0) == (LABEL > 0)).all()
    assert trained.losses is not None
    assert trained.losses[-8:].mean() < 0.2 * trained.losses[:8].mean()


def test_seeds_decide_everything(tiny: Path) -> None:
    """The same seed gives the same bits, whatever torch's global state; another seed other ones."""
    import torch

    torch.manual_seed(1)
    first, before = _train(tiny), torch.get_rng_state()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert _alike(first, _train(tiny))
    assert not _alike(first, _train(tiny, seed=1))


def test_layers_that_do_not_learn_stay(tiny: Path) -> None:
    """Only the upper `layers` change, and embeddings never; 0 trains the head alone."""
    start = EncoderTraining(start=str(tiny), max_tokens=16).starting_encoder().weights
    for layers in (0, 1, 2):
        after = _train(tiny, layers=layers).encoder.weights
        moved = {name for name, value in after.items() if not np.array_equal(value, start[name])}
        assert {name.split(".")[2] for name in moved} == {str(i) for i in range(2 - layers, 2)}
        assert not any(name.startswith("embeddings") for name in moved)


def test_an_interrupted_training_goes_on(tiny: Path, tmp_path: Path) -> None:
    """Stopped in its second epoch and called again, it ends in the very weights of one that was not stopped; a
    checkpoint of another training is refused."""

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 12:
            raise Stopped

    with pytest.raises(Stopped):
        _train(tiny, checkpoint=str(tmp_path), report=stop)
    seen: list[int] = []
    again = _train(tiny, checkpoint=str(tmp_path), report=lambda step, steps, loss: seen.append(step))
    assert seen[0] == 9, "the first epoch was trained again"
    assert _alike(again, _train(tiny))
    with pytest.raises(MethodError, match="another training"):
        _train(tiny, checkpoint=str(tmp_path), seed=1)


def test_the_recipe_names_no_path(tiny: Path) -> None:
    """What is stored of the settings has no path of this machine."""
    recipe = EncoderTraining(start=str(tiny), checkpoint="/somewhere").recipe()
    assert recipe["start"] == tiny.name
    assert not {"checkpoint", "report"} & set(recipe)
