"""The metrics card: what a router is worth on queries it never saw, beside every baseline that matters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outcomes import metrics
from outcomes.artefact import Manifest, load_router
from outcomes.assignment import Knob, calibrate_threshold, utility_choice
from outcomes.embedder import EmbedderLike
from outcomes.table import OutcomeTable, read_table, split
from protocol.errors import MethodError
from protocol.routing import Estimate, Queries, Router

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "TEST_SHARE",
    "CardRow",
    "MetricsCard",
    "ThresholdRow",
    "estimate_texts",
    "evaluate",
    "evaluate_router",
    "thresholds",
]

TEST_SHARE = 0.3
QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
SWEEP = np.linspace(0, 1, 41)


@dataclass(frozen=True, slots=True)
class CardRow:
    """One way to answer the queries. Means with bootstrap bounds: `score` in [0, 1], `cost_usd` US dollars
    a query, `gain` the score minus the best single model's (which is chosen with hindsight on these very
    queries). `shares`: of the queries that each model answers. None: unknown, because costs or outcomes are
    missing."""

    name: str
    score: float | None
    score_low: float | None
    score_high: float | None
    cost_usd: float | None
    cost_low: float | None
    cost_high: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MetricsCard:
    """How a router does on `queries` held-out queries.

    `aiq`: the router's cost-quality curve over its knob, as RouterBench's AIQ on the range of the single
    models' costs; `aiq_singles` that of mixing single models, which a router must beat to be useful. `apgr`
    (a random router's is 0.5) and `cpt50`, RouteLLM's, for two models. `categories`: per category its
    queries and mean score of each single model and of the router at quality 1. `confidence` of the
    intervals, from `resamples` resamplings paired over queries.
    """

    queries: int
    models: tuple[str, ...]
    rows: tuple[CardRow, ...]
    aiq: float | None
    aiq_singles: float | None
    apgr: float | None
    cpt50: float | None
    categories: Mapping[str, Mapping[str, float]]
    resamples: int
    confidence: float = 0.95

    def wire(self) -> dict[str, Any]:
        """The card as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """`alpha` for a wanted `share` of strong calls, and what it gives on held-out queries: the share `sent`, and mean
    `score` and `cost_usd` (US dollars a query; None: unknown)."""

    share: float
    alpha: float
    sent: float
    score: float | None
    cost_usd: float | None


def evaluate(
    artefact: Path,
    table: OutcomeTable | Path,
    *,
    embedder: EmbedderLike | None = None,
    test_share: float = TEST_SHARE,
    whole: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> MetricsCard:
    """Evaluate a trained router on the test part of `table`, or on the `whole` of one it never saw.

    The test part is decided by query text alone, so it is the part that training left out, in this table or
    another. Raises `ArtefactMismatch`, `MethodError`.
    """
    router, knob, held_out = _held_out(artefact, table, embedder, test_share, whole)
    return evaluate_router(router, held_out, knob, resamples=resamples, seed=seed)


def thresholds(
    artefact: Path,
    table: OutcomeTable | Path,
    strong: str,
    weak: str,
    shares: Sequence[float],
    *,
    embedder: EmbedderLike | None = None,
    whole: bool = False,
) -> list[ThresholdRow]:
    """What `policy.threshold.alpha` sends each of `shares` of the queries to `strong`, and what that is worth, by the
    queries that `evaluate` takes. No outcome decides an alpha. Raises as `evaluate`."""
    router, _, held_out = _held_out(artefact, table, embedder, TEST_SHARE, whole)
    estimate = router.estimate(held_out.queries)
    for name in (strong, weak):
        if name not in estimate.models:
            raise MethodError(f"The router has no model {name!r}; it has {', '.join(estimate.models)}.")
    better, worse = estimate.models.index(strong), estimate.models.index(weak)
    won = (1 + estimate.quality[:, better] - estimate.quality[:, worse]) / 2
    held_out = held_out.only(estimate.models)
    rows = []
    for share in shares:
        # Rounded down to what is printed: a query at the threshold itself still goes to the strong model.
        alpha = max(math.floor(1e4 * calibrate_threshold(won, share)), 0) / 1e4
        choice = np.where(won >= alpha, better, worse)
        score, cost = (metrics.chosen(values, choice) for values in (held_out.score, held_out.cost_usd))
        rows.append(
            ThresholdRow(
                share, alpha, float((choice == better).mean()), _mean_known(score), _mean_known(cost)
            )
        )
    return rows


def _held_out(
    artefact: Path,
    table: OutcomeTable | Path,
    embedder: EmbedderLike | None,
    test_share: float,
    whole: bool,
) -> tuple[Router, Knob | None, OutcomeTable]:
    """A trained router, its knob, and the embedded queries to judge it on."""
    table = read_table(table) if isinstance(table, Path) else table
    manifest, router = load_router(artefact, models=table.models, embedder=embedder.id if embedder else None)
    table = table.only(manifest.models)
    # All of them, as in training: the batches of an int8 embedder leave a trace in its vectors.
    vectors = _vectors(artefact, manifest, table.queries.texts, embedder)
    if vectors is not None:
        table = table.embedded(vectors)
    held_out = table if whole else split(table, test_share)[1]
    if not len(held_out):
        raise MethodError("No queries to evaluate on.")
    knob = Knob.parse(manifest.knob) if manifest.knob else None
    return router, knob, held_out


def _vectors(
    artefact: Path, manifest: Manifest, texts: Sequence[str], embedder: EmbedderLike | None
) -> NDArray[np.float32] | None:
    """The embeddings that the artefact's router needs; None where it needs none. Raises `MethodError`."""
    if not manifest.embedder:
        return None
    if embedder is None:
        raise MethodError(f"{artefact} was made with the embedder {manifest.embedder}; give that embedder.")
    return embedder.embed(texts)


def estimate_texts(artefact: Path, texts: Sequence[str], embedder: EmbedderLike | None = None) -> Estimate:
    """What a trained router estimates for these texts. Raises `ArtefactMismatch`, `MethodError`."""
    manifest, router = load_router(artefact, embedder=embedder.id if embedder else None)
    return router.estimate(Queries(texts, _vectors(artefact, manifest, texts, embedder)))


def evaluate_router(
    router: Router, table: OutcomeTable, knob: Knob | None, *, resamples: int = 1000, seed: int = 0
) -> MetricsCard:
    """The card of a fitted router on `table`, whose queries carry embeddings if the router needs them;
    queries that nobody has a score for are left out. Without a knob, only quality 1 and the cheapest are
    shown."""
    table = table.take(~np.isnan(table.score).all(axis=1))
    estimate = router.estimate(table.queries)
    table = table.only(estimate.models)
    score, cost = table.score, table.cost_usd
    n, m = score.shape
    uniform = dict.fromkeys(table.models, 1 / m)
    columns: dict[str, tuple[Floats, Floats, Mapping[str, float]]] = {
        name: (score[:, j], cost[:, j], {name: 1.0}) for j, name in enumerate(table.models)
    }
    columns["random"] = (_row_means(score), _row_means(cost), uniform)
    for quality in QUALITIES if knob else (0.0, 1.0):
        choice = utility_choice(estimate, _lam(knob, quality))
        columns[f"router, quality {quality:g}"] = (
            metrics.chosen(score, choice),
            metrics.chosen(cost, choice),
            {name: float((choice == j).mean()) for j, name in enumerate(table.models)},
        )
    best = metrics.best_single(score)
    columns["oracle"] = (metrics.oracle(score), np.full(n, np.nan), {})
    if not np.isnan(cost).any():
        columns["cheapest right"] = (*metrics.cheapest_right(score, cost), {})

    scores = np.stack([column[0] for column in columns.values()], axis=1)
    costs = np.stack([column[1] for column in columns.values()], axis=1)
    gains = scores - score[:, [best]]
    intervals = metrics.paired_bootstrap(
        np.concatenate([scores, costs, gains], axis=1), resamples=resamples, seed=seed
    )
    k = len(columns)
    rows = tuple(
        CardRow(name, *_bounds(of_score), *_bounds(of_cost), *_bounds(of_gain), shares=column[2])
        for (name, column), of_score, of_cost, of_gain in zip(
            columns.items(), intervals[:k], intervals[k : 2 * k], intervals[2 * k :], strict=True
        )
    )
    return MetricsCard(
        n,
        table.models,
        rows,
        *_aiq(estimate, score, cost, knob),
        *_strong_weak(estimate, score, best),
        _by_category(table, utility_choice(estimate, 0.0)),
        resamples,
    )


def _lam(knob: Knob | None, quality: float) -> float:
    if knob is not None:
        return knob.lam(quality)
    return 0.0 if quality >= 1 else float("inf")


def _aiq(
    estimate: Estimate, score: Floats, cost: Floats, knob: Knob | None
) -> tuple[float | None, float | None]:
    """AIQ of the router's curve and of the single models', over the range of the single models' mean
    costs."""
    if knob is None or np.isnan(cost).any() or np.isnan(score).any():
        return None, None
    singles = np.stack([cost.mean(axis=0), score.mean(axis=0)], axis=1)
    low, high = singles[:, 0].min(), singles[:, 0].max()
    if high <= low:
        return None, None
    choices = [utility_choice(estimate, knob.lam(quality)) for quality in SWEEP]
    curve = [
        (metrics.chosen(cost, choice).mean(), metrics.chosen(score, choice).mean()) for choice in choices
    ]
    return metrics.aiq_paper(curve, low, high), metrics.aiq_paper(singles, low, high)


def _strong_weak(estimate: Estimate, score: Floats, best: int) -> tuple[float | None, float | None]:
    """APGR and CPT(50 %) for a pool of two whose mean scores differ, the better one being the strong one."""
    if score.shape[1] != 2 or np.isnan(score).any() or score[:, 0].mean() == score[:, 1].mean():
        return None, None
    weak = 1 - best
    lead = estimate.quality[:, best] - estimate.quality[:, weak]
    curve = metrics.deferral_curve(lead, score[:, weak], score[:, best])
    return _number(curve.apgr()), _number(curve.cpt(0.5))


def _by_category(table: OutcomeTable, choice: NDArray[np.intp]) -> dict[str, dict[str, float]]:
    routed = metrics.chosen(table.score, choice)
    card = {}
    for category in sorted(set(table.categories)):
        mask = np.array([found == category for found in table.categories])
        means = {name: _mean(table.score[mask, j]) for j, name in enumerate(table.models)}
        card[category] = {"queries": float(mask.sum()), **means, "router": _mean(routed[mask])}
    return card


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _row_means(matrix: Floats) -> Floats:
    """Each query's mean over the models: what a model drawn at random gives on average."""
    known = ~np.isnan(matrix)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, matrix, 0.0).sum(axis=1) / known.sum(axis=1), dtype=np.float64)


def _bounds(interval: metrics.Interval) -> tuple[float | None, float | None, float | None]:
    return _number(interval.mean), _number(interval.low), _number(interval.high)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _mean_known(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
