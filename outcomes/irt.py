"""Item response with prompts' embeddings: every model has a latent identity, learnt by variational inference.

    I_k ~ N(μ_k, diag σ_k²), prior N(0, I);  p(k right on x) = σ(f(h)),  P(k₁ beats k₂ on x) = σ(g(h₁) − g(h₂)),
    h = ReLU(W [e(x) ; I_k] + b);   loss = BCE(f) + BCE(g) + KL(q(I) ‖ p(I)) / n

Training draws I = μ + σε; afterwards μ is the identity. A model that comes later gets one by fitting μ and σ alone to
its outcomes on a few prompts, everything else held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from outcomes import autograd as ad
from outcomes.attention import dense, dense_start
from outcomes.autograd import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Weights = Mapping[str, Tensor]

__all__ = ["binarised", "fit_identity", "fit_responses", "response_logits", "response_start"]

WIDE = np.log(0.3)
"""Log σ before training: identities start apart and certain enough to be told apart."""


def response_start(dimensions: int, models: int, identity: int, hidden: int, seed: int) -> dict[str, Any]:
    """Arrays before training: identities' `mean` and `spread` (log σ), shape (n_models, identity), and the network."""
    rng = np.random.default_rng(seed)
    network = dense_start(rng, "unit", dimensions + identity, hidden)
    heads = dense_start(rng, "right", hidden, 1) | dense_start(rng, "beats", hidden, 1)
    latent = {"mean": rng.normal(size=(models, identity)), "spread": np.full((models, identity), WIDE)}
    return network | heads | latent


def response_logits(w: Weights, vectors: Any, identities: Tensor, head: str = "right") -> Tensor:
    """Logits f (`right`) or g (`beats`) of every query and model, shape (n_queries, n_models)."""
    d = vectors.shape[1]
    # Linear in [e ; I]: each part is computed once and the sums are made between.
    asked = vectors @ w["unit.weight"][:d] + w["unit.bias"]
    who = identities @ w["unit.weight"][d:]
    n, m = asked.shape[0], who.shape[0]
    hidden = ad.relu(asked.reshape(n, 1, -1) + who)
    return dense(w, head, hidden).reshape(n, m)


def fit_responses(
    vectors: Floats,
    score: Floats,
    *,
    identity: int,
    hidden: int,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    seed: int,
) -> dict[str, Floats]:
    """The arrays of `response_start`, trained on scores (n_queries, n_models), NaN where unknown."""
    right, rng = binarised(score), np.random.default_rng(seed)
    queries = vectors.astype(np.float32)
    splits = -(-len(queries) // batch)
    batches = [rows for _ in range(epochs) for rows in np.array_split(rng.permutation(len(queries)), splits)]
    start = response_start(vectors.shape[1], score.shape[1], identity, hidden, seed)

    def loss(w: Weights, step: int) -> Tensor:
        return _bound(w, queries, right, batches[step], rng)

    return ad.minimise(start, loss, steps=len(batches), rate=rate, decay=decay)


def fit_identity(
    w: Mapping[str, Floats], vectors: Floats, score: Floats, *, steps: int, rate: float, seed: int
) -> Floats:
    """The identity, shape (identity,), of a model that scored `score` (n_queries,) on a few queries: the maximum of
    the same bound over its μ and σ, the network held."""
    rng, right = np.random.default_rng(seed), binarised(score[:, None])
    size = w["mean"].shape[1]
    held = {name: value for name, value in w.items() if name not in ("mean", "spread")}
    start = {"mean": w["mean"].mean(axis=0)[None], "spread": np.full((1, size), WIDE)}

    def loss(latent: Weights, step: int) -> Tensor:
        return _bound({**held, **latent}, vectors, right, np.arange(len(vectors)), rng)

    found = ad.minimise(start, loss, steps=steps, rate=rate)
    return np.asarray(found["mean"][0])


def binarised(score: Floats) -> Floats:
    """1 for the highest scores, as many as their mean says, 0 for the others, NaN for unknown ones."""
    known = ~np.isnan(score)
    values = np.sort(score[known])[::-1]
    wanted = max(1, round(float(values.sum())))
    threshold = max(values[min(wanted, len(values)) - 1], np.nextafter(0, 1))
    return np.where(known, (score >= threshold).astype(np.float64), np.nan)


def _bound(
    w: Weights, vectors: Any, right: Floats, rows: NDArray[np.intp], rng: np.random.Generator
) -> Tensor:
    """The negative evidence bound a query: both cross entropies, and the divergence of all identities from the prior
    spread over all queries."""
    known = ~np.isnan(right[rows])
    wanted = np.where(known, right[rows], 0.0).astype(np.float32)
    noise = rng.normal(size=w["mean"].shape).astype(np.float32)
    identities = w["mean"] + ad.exp(w["spread"]) * noise
    f, g = (response_logits(w, vectors[rows], identities, head) for head in ("right", "beats"))
    each = ad.log_sigmoid(f) * wanted + ad.log_sigmoid(-f) * (1 - wanted)
    fits = ad.total(each * known) * (1 / max(1, known.sum()))
    n, m = known.shape
    # Decisive pairs: the first is right where the second, known, is not.
    decisive = (wanted[:, :, None] > wanted[:, None]) & known[:, None]
    pairs = ad.log_sigmoid(g.reshape(n, m, 1) - g.reshape(n, 1, m)) * decisive
    wins = ad.total(pairs) * (1 / max(1, decisive.sum()))
    variance = ad.exp(w["spread"] * 2)
    divergence = ad.total(w["mean"] * w["mean"] + variance - w["spread"] * 2 - 1) * 0.5
    return divergence * (1 / right.size) - fits - wins
