"""Differentiation: every function against central differences, and training that arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from outcomes import autograd as ad
from outcomes.attention import attend, attention_start, dense, dense_start, layer_norm
from outcomes.autograd import Value, gradients, kept, minimise
from protocol.errors import MethodError

RNG = np.random.default_rng(0)
A, B, COLUMN = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(4, 5)), RNG.normal(size=(3, 1))
BLOCK = {
    name: value + 0.1 * RNG.normal(size=value.shape) for name, value in attention_start(RNG, "a", 4).items()
}
LAYER = dense_start(RNG, "l", 4, 2)
PRESENT = np.array([[True, True, False], [True, True, True]])

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sums, products and quotients broadcast": lambda x: (2 - x) * COLUMN / (3 + x * x) - x,
    "a broadcast operand": lambda x: A * x[0, :, :1] + x[1, 0],
    "matrix products": lambda x: (x @ B) @ (B.T @ x.swapaxes(-1, -2)),
    "an array times a value": lambda x: np.ones((5, 3)) @ x,
    "relu": lambda x: ad.relu(x - 0.1),
    "exp and sqrt": lambda x: ad.sqrt(ad.exp(x) + 1),
    "sigmoid": ad.sigmoid,
    "log_sigmoid": ad.log_sigmoid,
    "softmax": lambda x: ad.softmax(x) * A,
    "log_softmax": lambda x: ad.log_softmax(x) * A,
    "sums and means along axes": lambda x: ad.mean(x * x, 1) * ad.total(x, 1) + ad.mean(x, 0, keepdims=True)[0, 0],
    "parts": lambda x: ad.concat([x[:, :1], x[:, [2, 2, 0]] * 2], axis=1),
    "stacks": lambda x: ad.stack([x, x[:, :1] * x, A], axis=2) * 3,
    "attention": lambda x: attend(BLOCK, "a", x, x * 2, 2, PRESENT),
    "layer norm and dense": lambda x: dense(LAYER, "l", layer_norm(BLOCK, "a.norm", x)),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_gradient_is_the_derivative(function: Callable[[Any], Any]) -> None:
    """Pulled-back slopes equal central differences, and arrays give what values give."""
    weight = np.random.default_rng(1).normal(size=function(A).shape)
    x = Value(A)
    found = gradients(ad.total(function(x) * weight), [x])[0]
    assert np.allclose(function(x).data, function(A))
    expected = np.zeros_like(A)
    for i in np.ndindex(A.shape):
        step = np.zeros_like(A)
        step[i] = 1e-6
        expected[i] = ((function(A + step) - function(A - step)) * weight).sum() / 2e-6
    assert np.allclose(found, expected, atol=1e-6)


def test_no_candidate_takes_no_slope() -> None:
    """−∞ among the logits stays out of both softmaxes."""
    x = Value(np.array([[0.5, 1.0, 2.0]]))
    masked = x + np.array([0.0, -np.inf, 0.0])
    assert ad.softmax(masked).data[0, 1] == 0
    for function in (ad.softmax, ad.log_softmax):
        slope = gradients(ad.total(function(masked)[:, [0]]), [x])[0]
        assert slope[0, 1] == 0
        assert np.isfinite(slope).all()


def test_a_value_used_twice_and_one_not_used() -> None:
    """Slopes of all uses add up; what a loss does not depend on has zeros."""
    x, y = Value(np.array([3.0])), Value(np.array([1.0]))
    a, b = gradients(ad.total(x * x + x), [x, y])
    assert a == pytest.approx(7)
    assert b == 0


def test_training_arrives_and_leaves_the_start() -> None:
    """AdamW finds a least-squares solution; the arrays it started from stay."""
    x, wanted = RNG.normal(size=(50, 4)), RNG.normal(size=(4, 2))
    start = {"w": np.zeros((4, 2))}

    def loss(values: Any, step: int) -> Value:
        error = x @ values["w"] - x @ wanted
        return ad.mean(error * error)

    assert np.allclose(minimise(start, loss, steps=400, rate=0.1)["w"], wanted, atol=1e-2)
    assert not start["w"].any()


def test_a_misshapen_artefact_is_refused() -> None:
    """Arrays must have the shapes that the method would have made."""
    assert kept({"w": np.ones(3, dtype=np.float32)}, {"w": np.zeros(3)})["w"].dtype == np.float64
    with pytest.raises(MethodError, match="shape"):
        kept({"w": np.ones(3)}, {"w": np.zeros(4)})
