"""Small networks: gradients against finite differences, the linear head against scikit-learn, ridge in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.networks import Network, fit_network, logits, ridge, sigmoid, softmax
from protocol.errors import MethodError


def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 6))
    return inputs, (rng.random((400, 2)) < sigmoid(inputs @ rng.normal(size=(6, 2)))).astype(float)


def test_the_linear_head_is_logistic_regression() -> None:
    """Without hidden layers and decay, cross entropy leads to scikit-learn's unpenalised coefficients."""
    from sklearn.linear_model import LogisticRegression

    inputs, targets = _data()
    head = fit_network(
        inputs,
        2,
        lambda rows, out: sigmoid(out) - targets[rows],
        epochs=1500,
        batch=400,
        rate=0.05,
        decay=0.0,
    )
    for j in range(2):
        theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(inputs, targets[:, j])
        assert np.allclose(head.layers[0][0][:, j], theirs.coef_[0], atol=0.02)
        assert head.layers[0][1][j] == pytest.approx(theirs.intercept_[0], abs=0.02)


def test_the_backward_pass_is_the_derivative() -> None:
    """Of a network with two hidden layers, against central differences of the loss."""
    from outcomes.networks import _backward, _forward

    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in ((4, 5), (5, 3), (3, 2))]
    inputs, weight = rng.normal(size=(7, 4)), rng.normal(size=(7, 2))
    found = _backward(layers, _forward(layers, inputs), weight)
    for value, gradient in zip([v for layer in layers for v in layer], found, strict=True):
        for at in np.ndindex(value.shape):
            kept, losses = value[at], []
            for sign in (1, -1):
                value[at] = kept + sign * 1e-6
                losses.append((weight * _forward(layers, inputs)[-1]).sum())
            value[at] = kept
            assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient[at], rel=1e-4, abs=1e-6)


def test_a_hidden_layer_learns_what_a_linear_head_cannot() -> None:
    """Exclusive or."""
    inputs = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    target = (inputs.prod(axis=1) > 0).astype(float)[:, None]

    def accuracy(hidden: tuple[int, ...]) -> float:
        network = fit_network(
            inputs, 1, lambda rows, out: sigmoid(out) - target[rows], hidden=hidden, epochs=80, rate=0.01
        )
        return float(((network(inputs) > 0) == target).mean())

    assert accuracy(()) < 0.7
    assert accuracy((32,)) > 0.95


def test_networks_survive_their_tensors() -> None:
    """Layers written as tensors and read again compute the same; tensors that do not fit are refused."""
    inputs, targets = _data()
    network = fit_network(inputs, 2, lambda rows, out: out - targets[rows], hidden=(4,), epochs=2)
    again = Network.of(network.tensors(), 2)
    assert np.array_equal(again(inputs), network(inputs))
    with pytest.raises(MethodError):
        Network.of(network.tensors(), 3)
    with pytest.raises(MethodError):
        Network.of({}, 2)
    swapped = network.with_outputs(np.array([1, 0]))
    assert np.allclose(swapped(inputs), network(inputs)[:, ::-1])


def test_ridge_is_scikit_learns_and_leaves_gaps_out() -> None:
    """Without intercept; a column's unknown rows do not count for it."""
    from sklearn.linear_model import Ridge

    inputs, targets = _data()
    targets[:50, 1] = np.nan
    found = ridge(inputs, targets, 3.0)
    for j, rows in enumerate((slice(None), slice(50, None))):
        theirs = Ridge(3.0, fit_intercept=False).fit(inputs[rows], targets[rows, j])
        assert np.allclose(found[:, j], theirs.coef_)


def test_squashings() -> None:
    """Sigmoid and logits are inverse, extreme values do not overflow, a softmax sums to 1."""
    p = np.array([0.001, 0.5, 0.9])
    assert np.allclose(sigmoid(logits(p)), p)
    assert np.array_equal(sigmoid(np.array([-1e4, 1e4])), [0, 1])
    assert np.allclose(softmax(np.array([[1e4, 0, -1e4]])), [[1, 0, 0]])
