"""Losses for `outcomes.encoder_training`: each a function of (targets of the batch, outputs), a mean over its queries.

Targets are numpy arrays with a row a query; NaN, where a model has no outcome, counts for nothing. torch is imported
when a loss is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["in_cluster", "multi_label", "ranked_contrastive", "soft_cross_entropy", "squared"]

IMPOSSIBLE = -1e9
"""A logit that softmax makes 0, and whose product with 0 is 0."""


def multi_label(target: Floats, outputs: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of σ(outputs) against targets in [0, 1], a label a model; shapes (n, n_models)."""
    import torch

    wanted, known = _known(target)
    each = torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return _mean(each, known)


def squared(target: Floats, outputs: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the raw outputs; shapes (n, n_models)."""
    wanted, known = _known(target)
    return _mean((outputs - wanted) ** 2, known)


def soft_cross_entropy(target: Floats, outputs: torch.Tensor) -> torch.Tensor:
    """−Σ target·log softmax(outputs) over the last axis, whose targets are distributions; the mean over all other axes
    that have any. Up to the targets' own entropy this is KL(target ‖ softmax); one-hot targets make it softmax
    cross entropy. A class of unknown target is none of that row's. Shapes (…, n_classes)."""
    import torch

    wanted, known = _known(target)
    candidates = outputs.masked_fill(known == 0, IMPOSSIBLE)
    each = -(wanted * torch.log_softmax(candidates, dim=-1)).sum(-1)
    return _mean(each, known.amax(-1))


def ranked_contrastive(
    score: Floats, outputs: torch.Tensor, *, positives: int, negatives: int, per_sample: bool = True
) -> torch.Tensor:
    """RouterDC's sample-LLM loss. Sort the models by score; for i = 1..`positives` the i-th best is the positive, the
    `negatives` lowest are the negatives, of which any with a score above 0.5 does not count:
    −log softmax([x_pos, x_negs])[0], summed over i, mean over the batch. Shapes (n, n_models).

    A term whose positive scores 0 or less is dropped (`per_sample`); as released, a broadcast makes that a factor of
    the whole batch, the share of positives that are above 0. A positive that is itself among the lowest is left
    out of its own negatives.
    """
    import torch

    m = score.shape[1]
    found = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-found, axis=1, kind="stable")
    rows = np.arange(len(score))[:, None]
    lowest = order[:, m - min(negatives, m) :]
    values = found[rows, lowest]
    usable = (values <= 0.5) & np.isfinite(values)
    total = outputs.new_zeros(())
    for i in range(min(positives, m)):
        best = order[:, i : i + 1]
        kept = torch.from_numpy(usable & (lowest != best))
        against = outputs.gather(1, torch.from_numpy(lowest)).masked_fill(~kept, float("-inf"))
        logits = torch.cat([outputs.gather(1, torch.from_numpy(best)), against], dim=1)
        term = -torch.log_softmax(logits, dim=1)[:, 0]
        counts = torch.from_numpy((found[rows, best][:, 0] > 0).astype(np.float32))
        total = total + ((term * counts).mean() if per_sample else term.mean() * counts.mean())
    return total


def in_cluster(labels: NDArray[np.intp], pooled: torch.Tensor, *, negatives: int, seed: int) -> torch.Tensor:
    """RouterDC's sample-sample loss: each query's anchor against one other query of its cluster and up to `negatives`
    queries of other clusters, all of the batch: −log softmax of the cosines. Queries without either are left out."""
    import torch

    rng = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(pooled, dim=1)
    cosine = unit @ unit.T
    terms = []
    for i, label in enumerate(labels):
        same = np.flatnonzero(labels == label)
        same, other = same[same != i], np.flatnonzero(labels != label)
        if not len(same) or not len(other):
            continue
        picked = [rng.choice(same), *rng.choice(other, size=min(negatives, len(other)), replace=False)]
        terms.append(-torch.log_softmax(cosine[i, torch.from_numpy(np.array(picked))], dim=0)[0])
    return torch.stack(terms).mean() if terms else cosine.sum() * 0


def _mean(each: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Of the values that count; 0 where none does."""
    return (each * counts).sum() / counts.sum().clamp(min=1)


def _known(target: Floats) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets with 0 for unknown ones, and where they are known (1) or not (0), as float32 tensors."""
    import torch

    known = ~np.isnan(target)
    wanted = np.where(known, target, 0.0).astype(np.float32)
    return torch.from_numpy(wanted), torch.from_numpy(known.astype(np.float32))
