"""Small networks on frozen embeddings, in numpy: one trainer, whose target is a function.

A method says what it learns by `gradient(rows, outputs)`: the derivative of its loss with respect to the network's
outputs for some training rows. Everything else (layers, backward pass, Adam, batches) is here. No hidden layer is
the linear head. Training is float32, estimating float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Array = NDArray[np.floating[Any]]
    Gradient = Callable[[NDArray[np.intp], Array], Array]

__all__ = ["Adam", "Network", "fit_network", "fit_tagged", "logits", "ridge", "sigmoid", "softmax", "tagged"]


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Linear layers with ReLU between them; `layers` holds (weight (n_in, n_out), bias (n_out,))."""

    layers: tuple[tuple[Array, Array], ...]

    def __call__(self, inputs: Array) -> Array:
        return _forward(self.layers, inputs)[-1]

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The layers as named tensors of an artefact."""
        return {
            f"{name}.{i}": np.asarray(value, dtype=np.float32)
            for i, layer in enumerate(self.layers)
            for name, value in zip(("weight", "bias"), layer, strict=True)
        }

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]], outputs: int) -> Self:
        """The network that `tensors` describe, in float64. Raises `MethodError` unless the layers fit together and
        end in `outputs`."""
        layers: list[tuple[Array, Array]] = []
        width: int | None = None
        for i in range(max(1, sum(name.startswith("weight.") for name in tensors))):
            weight = tensor(tensors, f"weight.{i}", (width, None)).astype(np.float64)
            width = weight.shape[1]
            layers.append((weight, tensor(tensors, f"bias.{i}", (width,)).astype(np.float64)))
        tensor(tensors, f"bias.{len(layers) - 1}", (outputs,))
        return cls(tuple(layers))

    @property
    def inputs(self) -> int:
        return int(self.layers[0][0].shape[0])

    def scaled(self, factor: float) -> Self:
        """The network that gives for inputs what this one gives for `factor` times them."""
        (weight, bias), *rest = self.layers
        return type(self)(((weight * factor, bias), *rest))

    def with_outputs(self, columns: NDArray[np.intp]) -> Self:
        """The same network with its outputs in another order."""
        *hidden, (weight, bias) = self.layers
        return type(self)((*hidden, (np.ascontiguousarray(weight[:, columns]), bias[columns])))


class Adam:
    """Adam (Kingma and Ba, 2015) over arrays, changed in place. `decay`: weight decay, added to the gradient as in
    the original, or taken off the weights themselves (`decoupled`, AdamW)."""

    def __init__(
        self, values: Sequence[Array], rate: float, *, decay: float = 0.0, decoupled: bool = False
    ) -> None:
        self.values, self.rate, self.decay, self.decoupled = list(values), rate, decay, decoupled
        self._first = [np.zeros_like(value) for value in values]
        self._second = [np.zeros_like(value) for value in values]
        self._steps = 0

    def step(self, gradients: Sequence[Array]) -> None:
        self._steps += 1
        first_scale, second_scale = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for value, found, first, second in zip(
            self.values, gradients, self._first, self._second, strict=True
        ):
            gradient = found if self.decoupled else found + self.decay * value
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            if self.decoupled:
                value *= 1 - self.rate * self.decay
            value -= self.rate * (first / first_scale) / (np.sqrt(second / second_scale) + 1e-8)


def fit_network(
    inputs: Array,
    outputs: int,
    gradient: Gradient,
    *,
    hidden: Sequence[int] = (),
    seed: int = 0,
    epochs: int = 30,
    batch: int = 64,
    rate: float = 1e-3,
    decay: float = 1e-4,
) -> Network:
    """A network trained on `inputs`, shape (n, dimensions), by AdamW with a rate that falls linearly to 0. The loss
    is a mean over the rows of a batch: `gradient` is of each row's own loss."""
    rng = np.random.default_rng(seed)
    data = np.asarray(inputs, dtype=np.float32)
    sizes = (data.shape[1], *hidden, outputs)
    layers = [
        ((rng.normal(size=(a, b)) * np.sqrt(2 / a if hidden else 1 / a) * bool(hidden)).astype(np.float32),
         np.zeros(b, dtype=np.float32))
        for a, b in pairwise(sizes)
    ]  # fmt: skip
    values = [value for layer in layers for value in layer]
    adam = Adam(values, rate, decay=decay, decoupled=True)
    steps = max(1, epochs * -(-len(data) // batch))
    for step, rows in enumerate(_batches(len(data), batch, epochs, rng)):
        adam.rate = rate * (1 - step / steps)
        activations = _forward(layers, data[rows])
        slope = np.asarray(gradient(rows, activations[-1]) / len(rows), dtype=np.float32)
        adam.step(_backward(layers, activations, slope))
    return Network(tuple((weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in layers))


def fit_tagged(
    vectors: Array, tags: Array, known: NDArray[np.bool_], gradient: Gradient, *, hidden: int, **training: Any
) -> Network:
    """A network with one output that reads a query's vector beside a tag (a model, a way to ask it); see `tagged`. It
    is trained on the pairs that are `known`, shape (n_queries, n_tags), in the order of `values[known]`; `gradient`
    is of these. `training`: as `fit_network` takes it."""
    query, tag = np.nonzero(known)
    rows = np.concatenate(
        [np.asarray(vectors, dtype=np.float32)[query], np.asarray(tags, dtype=np.float32)[tag]], axis=1
    )
    return fit_network(rows, 1, gradient, hidden=(hidden,), **training)


def tagged(network: Network, vectors: Array, tags: Array) -> Array:
    """The output for every query beside every tag, shape (n_queries, n_tags)."""
    (weight, bias), (out, constant) = network.layers
    d = len(weight) - tags.shape[1]
    # The first layer is linear: the query's part is computed once, and each tag adds its row.
    shared = vectors @ weight[:d] + bias
    units = [np.maximum(shared + tag, 0) @ out[:, 0] for tag in tags @ weight[d:]]
    return np.asarray(np.stack(units, axis=1) + constant[0])


def ridge(inputs: Floats, targets: Floats, penalty: float) -> Floats:
    """Ridge regression without intercept of every column of `targets` (n, n_targets) on `inputs` (n, dimensions):
    coefficients, shape (dimensions, n_targets). Rows where a target is unknown do not count for it."""
    known = ~np.isnan(targets)
    eye = penalty * np.eye(inputs.shape[1])
    if known.all():
        return np.asarray(np.linalg.solve(inputs.T @ inputs + eye, inputs.T @ targets), dtype=np.float64)
    columns = [
        np.linalg.solve(inputs[row].T @ inputs[row] + eye, inputs[row].T @ targets[row, j])
        for j, row in enumerate(known.T)
    ]
    return np.stack(columns, axis=1)


def sigmoid(values: Array) -> Array:
    """The logistic function; never overflows, because tanh does not."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


def softmax(values: Array) -> Array:
    """Over the last axis."""
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def logits(probability: Array, margin: float = 1e-6) -> Array:
    """The inverse of `sigmoid`, of probabilities kept `margin` away from 0 and 1."""
    kept = np.clip(probability, margin, 1 - margin)
    return np.asarray(np.log(kept / (1 - kept)))


def _batches(n: int, batch: int, epochs: int, rng: np.random.Generator) -> Any:
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n, batch):
            yield order[start : start + batch]


def _forward(layers: Sequence[tuple[Array, Array]], inputs: Array) -> list[Array]:
    """The inputs, each hidden layer's activations, and the outputs."""
    activations = [inputs]
    for i, (weight, bias) in enumerate(layers):
        out = activations[-1] @ weight + bias
        activations.append(np.maximum(out, 0) if i < len(layers) - 1 else out)
    return activations


def _backward(
    layers: Sequence[tuple[Array, Array]], activations: Sequence[Array], slope: Array
) -> list[Array]:
    """Gradients of all weights and biases, given that of the outputs."""
    gradients: list[Array] = []
    for i in range(len(layers) - 1, -1, -1):
        gradients[:0] = [activations[i].T @ slope, slope.sum(axis=0)]
        if i:
            slope = (slope @ layers[i][0].T) * (activations[i] > 0)
    return gradients
