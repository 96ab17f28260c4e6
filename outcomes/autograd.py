"""Reverse-mode differentiation over numpy arrays, for methods whose networks are more than layers in a row.

A forward pass is written once, over arrays: training runs it on `Value`s, which remember how they were made, serving on
plain arrays, where every function here is its numpy formula and nothing is remembered. So a router with attention or a
graph trains where the gateway is installed, without torch, and what is served is the code that was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from outcomes import networks
from outcomes.artefact import tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]
    Pull = Callable[[Array], Array]

__all__ = [
    "Tensor",
    "Value",
    "concat",
    "exp",
    "gradients",
    "kept",
    "log_sigmoid",
    "log_softmax",
    "mean",
    "minimise",
    "plain",
    "relu",
    "sigmoid",
    "softmax",
    "sqrt",
    "stack",
    "total",
]


class Value:
    """An array on the tape: its `data`, and each array it was made of with the function that pulls a slope back."""

    __slots__ = ("data", "made_of")
    __array_ufunc__ = None
    """numpy leaves `array * value` to `Value`."""

    def __init__(self, data: Array, made_of: Sequence[tuple[Value, Pull]] = ()) -> None:
        self.data, self.made_of = data, made_of

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def __add__(self, other: Tensor | float) -> Tensor:
        return _made(self.data + plain(other), (self, _same), (other, _same))

    __radd__ = __add__

    def __neg__(self) -> Tensor:
        return _made(-self.data, (self, lambda slope: -slope))

    def __sub__(self, other: Tensor | float) -> Tensor:
        return _made(self.data - plain(other), (self, _same), (other, lambda slope: -slope))

    def __rsub__(self, other: Tensor | float) -> Tensor:
        return -self + other

    def __mul__(self, other: Tensor | float) -> Tensor:
        a, b = self.data, plain(other)
        return _made(a * b, (self, lambda slope: slope * b), (other, lambda slope: slope * a))

    __rmul__ = __mul__

    def __truediv__(self, other: Tensor | float) -> Tensor:
        a, b = self.data, plain(other)
        return _made(a / b, (self, lambda slope: slope / b), (other, lambda slope: -slope * a / (b * b)))

    def __matmul__(self, other: Tensor) -> Tensor:
        return _product(self, other)

    def __rmatmul__(self, other: Array) -> Tensor:
        return _product(other, self)

    def __getitem__(self, key: Any) -> Tensor:
        parts = key if isinstance(key, tuple) else (key,)
        once = all(isinstance(part, int | slice | type(None) | type(...)) for part in parts)

        def pull(slope: Array) -> Array:
            found = np.zeros_like(self.data)
            if once:
                found[key] = slope
            else:  # An element that was taken twice has two slopes.
                np.add.at(found, key, slope)
            return found

        return _made(self.data[key], (self, pull))

    def reshape(self, *shape: int) -> Tensor:
        return _made(self.data.reshape(*shape), (self, lambda slope: slope.reshape(self.shape)))

    def swapaxes(self, first: int, second: int) -> Tensor:
        return _made(self.data.swapaxes(first, second), (self, lambda slope: slope.swapaxes(first, second)))


Tensor = Any
"""An array or a `Value`: what forward passes are written over."""


def plain(x: Tensor | float) -> Any:
    """The array of a `Value`; anything else as it is. What is made of it is a constant to differentiation."""
    return x.data if isinstance(x, Value) else x


def relu(x: Tensor) -> Tensor:
    """The positive part."""
    found = np.maximum(plain(x), 0)
    return _made(found, (x, lambda slope: slope * (found > 0)))


def exp(x: Tensor) -> Tensor:
    """The exponential."""
    found = np.exp(plain(x))
    return _made(found, (x, lambda slope: slope * found))


def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    found = np.sqrt(plain(x))
    return _made(found, (x, lambda slope: slope / (2 * found)))


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function."""
    found = networks.sigmoid(plain(x))
    return _made(found, (x, lambda slope: slope * found * (1 - found)))


def log_sigmoid(x: Tensor) -> Tensor:
    """The logarithm of `sigmoid`, without overflow."""
    data = plain(x)
    return _made(-np.logaddexp(0, -data), (x, lambda slope: slope * networks.sigmoid(-data)))


def softmax(x: Tensor) -> Tensor:
    """Over the last axis; −∞ is no candidate."""
    found = networks.softmax(plain(x))
    return _made(found, (x, lambda slope: found * (slope - (slope * found).sum(-1, keepdims=True))))


def log_softmax(x: Tensor) -> Tensor:
    """Over the last axis; −∞ is no candidate, whose value stays −∞ and takes no slope."""
    data = plain(x)
    peak = data.max(axis=-1, keepdims=True)
    found = data - peak - np.log(np.exp(data - peak).sum(axis=-1, keepdims=True))
    return _made(found, (x, lambda slope: slope - np.exp(found) * slope.sum(-1, keepdims=True)))


def total(x: Tensor, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The sum, over one axis or all."""
    data = plain(x)

    def pull(slope: Array) -> Array:
        wide = slope if axis is None or keepdims else np.expand_dims(slope, axis)
        return np.broadcast_to(wide, data.shape)

    return _made(data.sum(axis=axis, keepdims=keepdims), (x, pull))


def mean(x: Tensor, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The mean, over one axis or all."""
    count = plain(x).size if axis is None else plain(x).shape[axis]
    return total(x, axis, keepdims=keepdims) * (1 / max(1, count))


def concat(parts: Sequence[Tensor], axis: int = -1) -> Tensor:
    """The parts one after the other; all other axes are of equal size."""
    data = [plain(part) for part in parts]
    ends = np.cumsum([part.shape[axis] for part in data])[:-1]

    def pull(i: int) -> Pull:
        return lambda slope: np.split(slope, ends, axis=axis)[i]

    return _made(np.concatenate(data, axis=axis), *((part, pull(i)) for i, part in enumerate(parts)))


def stack(parts: Sequence[Tensor], axis: int) -> Tensor:
    """The parts side by side on a new axis; they are of one shape after broadcasting."""
    data = np.broadcast_arrays(*(plain(part) for part in parts))

    def pull(i: int) -> Pull:
        return lambda slope: np.take(slope, i, axis=axis)

    return _made(np.stack(data, axis=axis), *((part, pull(i)) for i, part in enumerate(parts)))


def gradients(loss: Value, of: Sequence[Value]) -> list[Array]:
    """The derivative of a scalar `loss` with respect to each of `of`; zeros where it does not depend on one."""
    order: list[Value] = []
    seen: set[int] = set()
    # A child is finished before what it was made of, whatever the depth: no recursion.
    pending: list[tuple[Value, bool]] = [(loss, False)]
    while pending:
        value, finished = pending.pop()
        if finished:
            order.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            pending.append((value, True))
            pending += [(source, False) for source, _ in value.made_of]
    slopes: dict[int, Array] = {id(loss): np.ones_like(loss.data)}
    for value in reversed(order):
        slope = slopes.get(id(value))
        if slope is None:
            continue
        for source, pull in value.made_of:
            pulled = _shrunk(pull(slope), source.shape)
            before = slopes.get(id(source))
            slopes[id(source)] = pulled if before is None else before + pulled
    return [slopes.get(id(value), np.zeros_like(value.data)) for value in of]


def minimise(
    start: Mapping[str, Array],
    loss: Callable[[Mapping[str, Value], int], Value],
    *,
    steps: int,
    rate: float,
    decay: float = 0.0,
) -> dict[str, NDArray[np.float64]]:
    """The arrays of `start` after `steps` of AdamW on `loss(values, step)`, with a rate that falls linearly to 0.
    Training is float32; `start` stays as it is."""
    values = {name: Value(np.array(value, dtype=np.float32)) for name, value in start.items()}
    adam = networks.Adam([value.data for value in values.values()], rate, decay=decay, decoupled=True)
    for step in range(steps):
        adam.rate = rate * (1 - step / steps)
        adam.step(gradients(loss(values, step), list(values.values())))
    return {name: value.data.astype(np.float64) for name, value in values.items()}


def kept(tensors: Mapping[str, NDArray[Any]], like: Mapping[str, Array]) -> dict[str, NDArray[np.float64]]:
    """The arrays of an artefact that have the names and shapes of `like`, in float64. Raises `MethodError`."""
    return {name: tensor(tensors, name, value.shape).astype(np.float64) for name, value in like.items()}


def _made(data: Array, *made_of: tuple[Tensor, Pull]) -> Any:
    """`data` on the tape if anything it was made of is; else the plain array."""
    sources = [(source, pull) for source, pull in made_of if isinstance(source, Value)]
    return Value(data, sources) if sources else data


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product over the last two axes, leading axes broadcast."""
    left, right = plain(a), plain(b)
    if left.ndim > 2 and right.ndim == 2:
        # One large product, not one for each of the leading axes.
        flat = a.reshape(-1, left.shape[-1]) @ b
        return flat.reshape(*left.shape[:-1], right.shape[1])
    return _made(
        left @ right,
        (a, lambda slope: slope @ right.swapaxes(-1, -2)),
        (b, lambda slope: left.swapaxes(-1, -2) @ slope),
    )


def _same(slope: Array) -> Array:
    return slope


def _shrunk(slope: Array, shape: tuple[int, ...]) -> Array:
    """Summed over the axes along which an array of `shape` was broadcast."""
    if slope.shape == shape:
        return slope
    slope = slope.sum(axis=tuple(range(slope.ndim - len(shape))))
    wide = tuple(i for i, size in enumerate(shape) if size == 1 and slope.shape[i] != 1)
    return slope.sum(axis=wide, keepdims=True) if wide else slope
