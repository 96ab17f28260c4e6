"""Token-level uncertainty: the faithful checks (1) and (3) of its card."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cascades.base import Shown
from cascades.token_uncertainty import TokenUncertainty


def score(logprobs: list[float], variant: str = "chow-average", alpha: float = 0.0) -> float | None:
    return TokenUncertainty(variant, alpha).score(Shown("q", "a", tuple(logprobs)))


def test_length_bias() -> None:
    """At equal per-token quality Chow-Sum orders by −T, Chow-Average is flat, quantile-0 falls mildly."""
    rng = np.random.default_rng(0)
    lengths = [4, 16, 64, 256]
    samples = {n: [rng.normal(-0.5, 0.2, n).tolist() for _ in range(200)] for n in lengths}
    mean = {
        variant: [float(np.mean([score(sample, variant) for sample in samples[n]])) for n in lengths]
        for variant in ("chow-sum", "chow-average", "chow-quantile")
    }
    assert mean["chow-sum"] == sorted(mean["chow-sum"], reverse=True)
    assert np.allclose(mean["chow-sum"], [-0.5 * n for n in lengths], rtol=0.05)
    assert np.allclose(mean["chow-average"], -0.5, atol=0.02)
    assert mean["chow-quantile"] == sorted(mean["chow-quantile"], reverse=True)
    assert mean["chow-quantile"][-1] > 3 * mean["chow-quantile"][0]


def test_constant_tokens_show_the_bias_exactly() -> None:
    """With all tokens alike, the sum is −T times the token and the other rules do not see T."""
    for n in (1, 2, 50):
        assert score([-0.25] * n, "chow-sum") == -0.25 * n
        assert score([-0.25] * n, "chow-average") == -0.25
        assert score([-0.25] * n, "chow-quantile", 0.3) == pytest.approx(-0.25)


def test_quantiles() -> None:
    """α = 0 is the minimum, α = 1 the maximum, between them numpy's quantile; T = 1 gives ℓ_1 for all."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 10, 101):
        ell = (-rng.exponential(1.0, n)).tolist()
        assert score(ell, "chow-quantile", 0.0) == min(ell)
        assert score(ell, "chow-quantile", 1.0) == max(ell)
        for alpha in (0.01, 0.1, 0.25, 0.5, 0.9):
            assert score(ell, "chow-quantile", alpha) == pytest.approx(float(np.quantile(ell, alpha)))
    for variant in ("chow-sum", "chow-average", "chow-quantile"):
        assert {score([-0.7], variant, alpha) for alpha in (0.0, 0.4, 1.0)} == {-0.7}


def test_average_is_the_default() -> None:
    """Without arguments it is Chow-Average."""
    assert score([-1.0, -2.0]) == -1.5


def test_impossible_tokens() -> None:
    """A token of probability 0 makes an answer as bad as can be, never NaN."""
    assert score([-math.inf, -0.1]) == -math.inf
    assert score([-math.inf, -0.1], "chow-quantile", 1.0) == -0.1
    assert score([-math.inf, -0.1], "chow-quantile", 0.0) == -math.inf


@pytest.mark.parametrize("logprobs", [[], [math.nan, -0.1]])
def test_nothing_to_judge_by(logprobs: list[float]) -> None:
    """No tokens, or NaN from a backend, is no score."""
    assert score(logprobs) is None


@pytest.mark.parametrize("arguments", [("chow-median",), ("chow-quantile", 1.5), ("chow-quantile", -0.1)])
def test_refuses_bad_parameters(arguments: tuple) -> None:
    """Unknown variants and quantiles out of range are refused."""
    with pytest.raises(ValueError, match=r"variant|alpha"):
        TokenUncertainty(*arguments)
