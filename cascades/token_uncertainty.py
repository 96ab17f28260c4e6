"""Language Model Cascades: Token-level uncertainty and beyond. Gupta et al., ICLR 2024, arXiv 2404.10136.

    Chow-Sum         s(x) = Σ_t ℓ_t
    Chow-Average     s(x) = (1/T) Σ_t ℓ_t            (default)
    Chow-Quantile-α  s(x) = quantile_α({ℓ_t})         (α = 0: the least certain token; linear interpolation)
    defer iff s(x) < τ

ℓ_t = log p(y_t | y_<t, x), natural log, is `Shown.logprobs`; τ is the stage's threshold in `Rule`, fitted by
`cascades.calibrate`.

Needs: log-probabilities of the small model's tokens (any API with `logprobs: true`); a fitted artefact that
holds τ; labels to fit it. Ask for log-probabilities at temperature 1, as vLLM and hosted APIs report them
whatever the sampling temperature.

Returns: one float a query, ≤ 0, in nats (Chow-Sum: per answer; the others: per token); None for an answer
without tokens.

Differs from the paper: the learned rules (Post-hoc-Quantile, Post-hoc-Embed: an MLP over the quantile
vector) are not here yet. End-of-sequence and stop-string tokens are excluded, as ℓ is over what the caller
reads.

Laws: for equal per-token quality Chow-Sum orders answers by −T while Chow-Average is flat; quantile-0
equals min exactly; with T = 1 every rule equals ℓ_1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cascades.base import Shown
from protocol.methods import Evidence, Method

__all__ = ["METHOD", "TokenUncertainty"]

METHOD = Method(
    id="token-uncertainty",
    title="Language Model Cascades: Token-level uncertainty and beyond",
    year=2024,
    paper="arXiv 2404.10136",
    taxonomy="c2",
    contract="scorer",
    implementation="TokenUncertainty",
    needs=frozenset({"logprobs", "artefact", "labels"}),
    aliases=("chow-sum", "chow-average", "chow-quantile"),
    evidence=(
        Evidence(
            "exact equivalence",
            "length bias: at equal per-token quality Chow-Sum orders by −T, Chow-Average is flat",
            "tests/cascades/test_token_uncertainty.py::test_length_bias",
        ),
        Evidence(
            "exact equivalence",
            "α = 0 is the minimum; linearly interpolated quantiles; at T = 1 all equal ℓ_1",
            "tests/cascades/test_token_uncertainty.py::test_quantiles",
        ),
    ),
    unverified="The card recalls the quantile grid and target of the post-hoc MLP, which is not built yet. "
    "No published figure was reproduced.",
)

Variant = Literal["chow-average", "chow-sum", "chow-quantile"]
VARIANTS: tuple[Variant, ...] = ("chow-average", "chow-sum", "chow-quantile")


class TokenUncertainty:
    """Scores an answer by its token log-probabilities. `alpha` in [0, 1] is read by chow-quantile alone.

    Raises ValueError for an unknown `variant` or an `alpha` out of range.
    """

    def __init__(self, variant: Variant = "chow-average", alpha: float = 0.0) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1]; got {alpha}")
        self.variant: Variant = variant
        self.alpha = alpha

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"variant": self.variant, "alpha": self.alpha}

    def score(self, shown: Shown) -> float | None:
        """s(x) in nats; None without tokens, or when the backend sent a NaN."""
        ell = shown.logprobs
        if not ell or any(math.isnan(value) for value in ell):
            return None
        if self.variant == "chow-sum":
            return math.fsum(ell)
        if self.variant == "chow-average":
            return math.fsum(ell) / len(ell)
        return _quantile(ell, self.alpha)


def _quantile(ell: Sequence[float], alpha: float) -> float:
    """quantile_α with linear interpolation between order statistics (numpy's default)."""
    ordered = sorted(ell)
    position = alpha * (len(ordered) - 1)
    low = math.floor(position)
    share = position - low
    # Without the test, 0 · (−inf) would make NaN of an impossible token.
    return ordered[low] if share == 0 else ordered[low] * (1 - share) + ordered[low + 1] * share
