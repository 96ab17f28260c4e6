"""Forests: grown by scikit-learn, walked in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.forest import Forest, grow
from protocol.errors import MethodError


def _data(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(n, 6))
    return inputs, np.stack([inputs[:, 0] > 0, inputs[:, 1] + inputs[:, 2] > 0], axis=1).astype(float)


def test_it_is_scikit_learns_forest() -> None:
    """The walk ends in the leaves of scikit-learn's own trees, for training rows and for others."""
    from sklearn.ensemble import ExtraTreesRegressor

    inputs, targets = _data()
    asked = np.concatenate([inputs[:50], np.random.default_rng(1).normal(size=(50, 6))]).astype(np.float32)
    for leaf in (1, 5):
        own = grow(inputs, targets, trees=20, leaves=(leaf,), share=0.5, seed=3)
        theirs = ExtraTreesRegressor(20, min_samples_leaf=leaf, max_features=0.5, random_state=3)
        theirs.fit(inputs.astype(np.float32), targets)
        assert np.allclose(own(asked)[0], theirs.predict(asked), atol=1e-6)


def test_cut_back_trees_hold_means_of_enough_rows() -> None:
    """A leaf below the larger limit answers with its nearest ancestor above it: the root's mean at the limit n."""
    inputs, targets = _data()
    fine, coarse, root = grow(inputs, targets, trees=5, leaves=(1, 30, len(inputs)), share=0.5, seed=0)(
        inputs
    )
    assert np.allclose(fine, targets), "leaves of one row reproduce it"
    assert np.allclose(root, targets.mean(axis=0))
    spread = [values.std() for values in (fine, coarse, root)]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize(
    ("name", "where", "value"), [("nodes", (0, 0), 99), ("nodes", (0, 1), 0), ("roots", (0,), -1)]
)
def test_a_forest_that_cannot_be_walked_is_refused(name: str, where: tuple[int, ...], value: int) -> None:
    """A feature that is not there, a path that never ends, a root outside."""
    inputs, targets = _data()
    forest = grow(inputs, targets, trees=3, leaves=(5,), share=0.5, seed=0)
    tensors = {key: np.array(part) for key, part in forest.tensors("f").items()}
    assert Forest.read(tensors, "f", 6, 1, 2).depth == forest.depth
    tensors[f"f.{name}"][where] = value
    with pytest.raises(MethodError):
        Forest.read(tensors, "f", 6, 1, 2)
