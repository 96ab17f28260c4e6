"""Extremely randomised trees: grown by scikit-learn, served in numpy.

Geurts, Ernst, Wehenkel, "Extremely randomized trees", Machine Learning 63, 2006. A tree splits on the best of some
features at thresholds drawn at random; a leaf holds the mean of its training rows for every output at once, so that
models share what is learnt about queries. Serving walks all trees together, one level a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import tensor
from protocol.errors import MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Forest", "grow"]

DEEPEST = 256
"""Steps: random splits of tens of thousands of rows stay well below."""


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """`roots`: node of each tree's root. `nodes`: of every node, (n_nodes, 4): the feature it looks at, its child for
    values not above the threshold, that for those above (a leaf is its own child), and the bits of the float32
    threshold: one row a node, because what walking costs is memory. `value`: of every node, (n_nodes, n_levels,
    n_outputs): the mean of its training rows, and of those of its nearest ancestor with enough of them."""

    roots: NDArray[np.int32]
    nodes: NDArray[np.int32]
    value: NDArray[np.float32]
    depth: int

    def __call__(self, rows: Floats) -> Floats:
        """Means over the trees, shape (n_levels, n_rows, n_outputs)."""
        found = np.empty((len(rows), *self.value.shape[1:]))
        for i, row in enumerate(np.asarray(rows, dtype=np.float32)):
            at = self.roots
            for _ in range(self.depth):
                feature, low, high, threshold = self.nodes.take(at, axis=0).T
                at = np.where(row.take(feature) > threshold.view(np.float32), high, low)
            found[i] = self.value.take(at, axis=0).mean(axis=0, dtype=np.float64)
        return np.ascontiguousarray(found.swapaxes(0, 1))

    def with_outputs(self, columns: NDArray[np.intp]) -> Self:
        """The same trees with their outputs in another order."""
        # Contiguous: `take` would copy the whole array for every query otherwise.
        return type(self)(self.roots, self.nodes, np.ascontiguousarray(self.value[..., columns]), self.depth)

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """As tensors of an artefact."""
        return {f"{name}.roots": self.roots, f"{name}.nodes": self.nodes, f"{name}.value": self.value}

    @classmethod
    def read(
        cls, tensors: Mapping[str, NDArray[Any]], name: str, inputs: int, levels: int, outputs: int
    ) -> Self:
        """From an artefact's tensors. Raises `MethodError` unless every path ends in a leaf and all indices exist."""
        roots, nodes = tensor(tensors, f"{name}.roots", (None,)), tensor(tensors, f"{name}.nodes", (None, 4))
        n = len(nodes)
        value = tensor(tensors, f"{name}.value", (n, levels, outputs))
        integers = roots.dtype == nodes.dtype == np.int32
        inside = integers and all(
            len(part) and part.min() >= 0 and part.max() < limit
            for part, limit in ((roots, n), (nodes[:, 0], inputs), (nodes[:, 1:3], n))
        )
        depth = _depth(roots, nodes[:, 1:3]) if inside else None
        if depth is None:
            raise MethodError(f"The artefact's forest {name!r} is not one of ours.")
        return cls(roots, nodes, value, depth)


def grow(
    inputs: Floats, targets: Floats, *, trees: int, leaves: Sequence[int], share: float, seed: int
) -> Forest:
    """A forest of `trees` for `targets`, shape (n, n_outputs), without unknown values, `share` of the features tried at
    a split. `leaves`: rows in a leaf at least, rising; the trees are grown for the first and cut back for each other.
    Needs scikit-learn (extra `learn`)."""
    from sklearn.ensemble import ExtraTreesRegressor

    grown = ExtraTreesRegressor(trees, min_samples_leaf=leaves[0], max_features=share, random_state=seed)
    grown.fit(np.asarray(inputs, dtype=np.float32), targets)
    found = [one.tree_ for one in grown.estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in found)])
    nodes, values = [], []
    for tree, start in zip(found, starts, strict=False):
        own = np.arange(tree.node_count)
        pair = np.stack([tree.children_left, tree.children_right], axis=1)
        children = np.where(pair < 0, own[:, None], pair) + start
        bits = _below(tree.threshold).view(np.int32)
        nodes.append(np.column_stack([np.maximum(tree.feature, 0), children, bits]).astype(np.int32))
        mean = tree.value.reshape(tree.node_count, -1)
        values.append(np.stack([mean[_holder(pair, tree.n_node_samples, leaf)] for leaf in leaves], axis=1))
    roots, joined = starts[:-1].astype(np.int32), np.ascontiguousarray(np.concatenate(nodes))
    depth = _depth(roots, joined[:, 1:3])
    assert depth is not None, "scikit-learn grew a graph that is no tree"
    return Forest(roots, joined, np.ascontiguousarray(np.concatenate(values), dtype=np.float32), depth)


def _below(threshold: Floats) -> NDArray[np.float32]:
    """The largest float32 not above each threshold: float32 values compare with it as with the threshold itself."""
    found = threshold.astype(np.float32)
    return np.where(found > threshold, np.nextafter(found, np.float32(-np.inf)), found)


def _holder(pair: NDArray[np.integer], samples: NDArray[np.integer], leaf: int) -> NDArray[np.intp]:
    """For every node of a tree itself, or its nearest ancestor with `leaf` rows. Parents stand before children."""
    holder = np.arange(len(pair))
    for node, (left, right) in enumerate(pair.tolist()):
        for child in (left, right):
            if child >= 0 and (samples[child] < leaf or holder[node] != node):
                holder[child] = holder[node]
    return holder


def _depth(roots: NDArray[np.int32], children: NDArray[np.int32]) -> int | None:
    """Steps from the roots until all have come to leaves; None when that takes more than any tree of ours."""
    leaf = (children == np.arange(len(children))[:, None]).all(axis=1)
    at, steps = np.unique(roots), 0
    while not leaf[at].all():
        at, steps = np.unique(children[at[~leaf[at]]]), steps + 1
        if steps > DEEPEST:
            return None
    return steps
