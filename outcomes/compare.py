"""Every method side by side on queries none of them saw: `chorus evaluate --train … --test …` and `make bench-routers`.

Scores carry paired bootstrap intervals. `gain` is over the best single model chosen with hindsight on the test queries,
the hardest baseline of its kind; the one chosen on the training queries is a row too. Curves sweep λ over the
router's own estimates; no label decides where they are cut.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes import metrics
from outcomes.assignment import calibrate_knob, utility_choice
from outcomes.learning_set import known_means
from outcomes.table import OutcomeTable, normalised_text
from protocol.errors import MethodError
from protocol.routing import Estimate, Queries, Router

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Comparison", "Fitted", "Row", "compare", "complete", "permuted"]

SWEEP = np.linspace(0, 1, 41)
FRACTIONS = np.linspace(0, 1, 21)
BINS = 10
LARGE = 100
"""Queries a category needs for figures of its own."""


@dataclass(frozen=True, slots=True)
class Row:
    """A way to answer the test queries. `score`, `gain` (over the hindsight best single model): mean and 95 % interval;
    `gap`: share of the way from that model to the oracle; `cost_usd`: mean, US dollars.

    Of routers only: `aiq` (RouterBench, over the range of the single models' costs), `cost_at_best`: the least
    cost, as a share of the best single model's, at which the curve reaches its score (None: never);
    `quality_at_half`: the curve's score at half of that cost; `calibration`: mean distance of estimated quality
    and mean score over ten bins of equal count; `apgr`, `cpt50`, `cpt80` for two models, `apgr_by_category` within
    each category of 100 queries or more; `fit_s` seconds; `artefact_bytes`; `estimate_ms`: median for one
    query, embedding excluded. To draw: `frontier`, (cost, score) along the hull of the cost-quality curve, and
    `deferral`, (share of strong calls, score) of two models."""

    name: str
    score: metrics.Interval
    gain: metrics.Interval
    gap: float
    cost_usd: float | None
    aiq: float | None = None
    cost_at_best: float | None = None
    quality_at_half: float | None = None
    calibration: float | None = None
    apgr: float | None = None
    cpt50: float | None = None
    cpt80: float | None = None
    apgr_by_category: Mapping[str, float] | None = None
    fit_s: float | None = None
    artefact_bytes: int | None = None
    estimate_ms: float | None = None
    frontier: tuple[tuple[float, float], ...] | None = None
    deferral: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`baselines` (each single model among them) and `routers` on the same test queries. `agreement`: share of
    queries on which two routers choose the same model at quality 1, in the order of `routers`. `aiq_singles`:
    the zero router, mixing single models."""

    train_queries: int
    test_queries: int
    models: tuple[str, ...]
    baselines: tuple[Row, ...]
    routers: tuple[Row, ...]
    agreement: tuple[tuple[float, ...], ...]
    aiq_singles: float | None

    def wire(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)

    def alike(self, share: float = 0.99) -> list[tuple[str, str, float]]:
        """Pairs of routers that choose alike on more than `share` of the queries."""
        names = [row.name for row in self.routers]
        return [
            (a, b, self.agreement[i][j])
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i < j and self.agreement[i][j] > share
        ]


def compare(
    train: OutcomeTable,
    test: OutcomeTable,
    makers: Mapping[str, Callable[[], Router]],
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    through: Callable[[str, Callable[[], Fitted]], Fitted] | None = None,
) -> Comparison:
    """Fit what `makers` build on `train` and judge it on `test`, whose queries carry embeddings if any router
    needs them.

    Both tables must have the same models and `test` a score in every cell (see `complete`). `progress` hears each
    router's name. `through(name, fit)` gives a router's `Fitted`, by calling `fit` or from where it was kept.
    Raises `MethodError` also when a test query is among the training queries.
    """
    if train.models != test.models:
        raise MethodError(f"Train has {', '.join(train.models)}; test has {', '.join(test.models)}.")
    if not len(train) or not len(test):
        raise MethodError(f"{len(train)} queries to train on and {len(test)} to test on are too few.")
    if np.isnan(test.score).any():
        raise MethodError("Some test scores are unknown; `complete` leaves those queries out.")
    seen = {normalised_text(text) for text in train.queries.texts}
    if copies := sum(normalised_text(text) in seen for text in test.queries.texts):
        raise MethodError(f"{copies} test queries are in the training table: figures would be too good.")
    fitted = {}
    for name, make in makers.items():
        if progress is not None:
            progress(name)
        fit = partial(Fitted.of, make, train, test)
        fitted[name] = fit() if through is None else through(name, fit)
    choices = {name: utility_choice(found.estimate, 0.0) for name, found in fitted.items()}
    columns = _baselines(train, test)
    for name, choice in choices.items():
        columns[name] = metrics.chosen(test.score, choice), metrics.chosen(test.cost_usd, choice)
    best = metrics.best_single(test.score)
    scores = np.stack([score for score, _ in columns.values()], axis=1)
    both = np.concatenate([scores, scores - test.score[:, [best]]], axis=1)
    intervals = metrics.paired_bootstrap(both, resamples=resamples, seed=seed)
    oracle = float(metrics.oracle(test.score).mean())
    reference = float(test.score[:, best].mean())
    rows = {}
    for i, (name, (score, cost)) in enumerate(columns.items()):
        gap = (float(score.mean()) - reference) / (oracle - reference) if oracle > reference else 0.0
        facts = _facts(fitted[name], test, best) if name in fitted else {}
        rows[name] = Row(name, intervals[i], intervals[i + len(columns)], gap, _known(cost.mean()), **facts)
    agreement = tuple(tuple(float((choices[a] == choices[b]).mean()) for b in choices) for a in choices)
    return Comparison(
        len(train),
        len(test),
        test.models,
        tuple(row for name, row in rows.items() if name not in fitted),
        tuple(rows[name] for name in fitted),
        agreement,
        _aiq_of(np.stack([test.cost_usd.mean(axis=0), test.score.mean(axis=0)], axis=1), test),
    )


def complete(table: OutcomeTable, *, coverage: float = 0.9) -> OutcomeTable:
    """The models with scores for at least `coverage` of the queries, and of the queries those with all their
    scores: the part on which methods can be compared without saying anything about unknown cells. Raises
    `MethodError` when fewer than two models are left."""
    known = ~np.isnan(table.score)
    kept = [name for name, share in zip(table.models, known.mean(axis=0), strict=True) if share >= coverage]
    if len(kept) < 2:
        raise MethodError(f"Fewer than two models have scores for {coverage:.0%} of the queries.")
    table = table.only(kept)
    return table.take(~np.isnan(table.score).any(axis=1))


def permuted(table: OutcomeTable, seed: int = 0) -> OutcomeTable:
    """A control: the same queries with each other's outcomes. Nothing can be learnt from it but means, so
    whatever beats the best single model on it has seen the answers."""
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = table.take(order)
    return OutcomeTable.of_matrices(
        table.models,
        table.queries.texts,
        shuffled.score,
        shuffled.cost_usd,
        embeddings=table.queries.embeddings,
        categories=table.categories,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What training a router gave: its `estimate` of the test queries, and `fit_s`, `artefact_bytes` and
    `estimate_ms` as in `Row`."""

    estimate: Estimate
    fit_s: float
    artefact_bytes: int
    estimate_ms: float

    @classmethod
    def of(
        cls, make: Callable[[], Router], train: OutcomeTable, test: OutcomeTable, *, repeats: int = 30
    ) -> Self:
        """Train, estimate, and take the time of single queries."""
        router = make()
        start = time.perf_counter()
        router.fit(train)
        fit_s = time.perf_counter() - start
        estimate = router.estimate(test.queries)
        vectors = test.queries.embeddings
        taken = []
        for i in range(min(repeats, len(test))):
            one = Queries([test.queries.texts[i]], None if vectors is None else vectors[i : i + 1])
            start = time.perf_counter()
            router.estimate(one)
            taken.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            router.save(Path(folder))
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        return cls(estimate, fit_s, size, 1000 * float(np.median(taken)))


def _baselines(train: OutcomeTable, test: OutcomeTable) -> dict[str, tuple[Floats, Floats]]:
    """Score and cost of each query under every baseline, by name."""
    score, cost = test.score, test.cost_usd
    columns: dict[str, tuple[Floats, Floats]] = {
        f"only {name}": (score[:, j], cost[:, j]) for j, name in enumerate(test.models)
    }
    columns["random"] = score.mean(axis=1), cost.mean(axis=1)
    means = known_means(train.score)
    best = int(np.nanargmax(means))
    columns["best single, chosen on train"] = score[:, best], cost[:, best]
    category, seen = np.array(test.categories), np.array(train.categories)
    choice = np.full(len(test), best)
    for name in set(test.categories) & set(train.categories):
        in_task = known_means(train.score[seen == name])
        choice[category == name] = int(np.nanargmax(in_task)) if np.isfinite(in_task).any() else best
    columns["best of each task, chosen on train"] = (
        metrics.chosen(score, choice),
        metrics.chosen(cost, choice),
    )
    columns["oracle"] = metrics.oracle(score), np.full(len(test), np.nan)
    if not np.isnan(cost).any():
        columns["oracle, cheapest right"] = metrics.cheapest_right(score, cost)
    return columns


def _facts(fitted: Fitted, test: OutcomeTable, best: int) -> dict[str, Any]:
    """The figures that only routers have."""
    estimate = fitted.estimate
    facts: dict[str, Any] = {
        "calibration": _calibration(estimate.quality, test.score),
        "fit_s": fitted.fit_s,
        "artefact_bytes": fitted.artefact_bytes,
        "estimate_ms": fitted.estimate_ms,
    }
    if not np.isnan(test.cost_usd).any():
        curve = _curve(estimate, test)
        hull = metrics.hull(curve)
        full, wanted = float(test.cost_usd[:, best].mean()), float(test.score[:, best].mean())
        facts["aiq"] = _aiq_of(curve, test)
        facts["frontier"] = _points(hull)
        if hull[-1, 1] >= wanted and full > 0:
            # Left of its first point a curve is not known to exist.
            facts["cost_at_best"] = float(np.interp(wanted, hull[:, 1], hull[:, 0])) / full
        if hull[0, 0] <= full / 2:
            facts["quality_at_half"] = float(np.interp(full / 2, hull[:, 0], hull[:, 1]))
    means = test.score.mean(axis=0)
    if len(means) == 2 and means[0] != means[1]:
        lead = estimate.quality[:, best] - estimate.quality[:, 1 - best]
        deferral = metrics.deferral_curve(lead, test.score[:, 1 - best], test.score[:, best])
        facts |= {
            "apgr": deferral.apgr(),
            "cpt50": _known(deferral.cpt(0.5)),
            "cpt80": _known(deferral.cpt(0.8)),
            "apgr_by_category": _within(lead, test, best),
            "deferral": _points(
                np.stack([FRACTIONS, np.interp(FRACTIONS, deferral.fraction, deferral.quality)], axis=1)
            ),
        }
    return facts


def _within(lead: Floats, test: OutcomeTable, best: int) -> dict[str, float]:
    """APGR of each category alone: a router that only tells categories apart shines on their mixture, not here."""
    category = np.array(test.categories)
    found = {}
    for name in sorted(set(test.categories)):
        rows = category == name
        weak, strong = test.score[rows, 1 - best], test.score[rows, best]
        if rows.sum() >= LARGE and weak.mean() != strong.mean():
            found[name] = metrics.deferral_curve(lead[rows], weak, strong).apgr()
    return found


def _curve(estimate: Estimate, test: OutcomeTable) -> Floats:
    """Mean cost and score at every setting of the knob, shape (n_settings, 2)."""
    knob = calibrate_knob(estimate)
    choices = [utility_choice(estimate, knob.lam(float(quality))) for quality in SWEEP]
    return np.array(
        [[metrics.chosen(m, choice).mean() for m in (test.cost_usd, test.score)] for choice in choices]
    )


def _points(curve: Floats) -> tuple[tuple[float, float], ...]:
    """A curve to draw, rounded to what can be seen."""
    return tuple((float(f"{x:.4g}"), round(float(y), 4)) for x, y in curve)


def _aiq_of(points: Sequence[Sequence[float]] | Floats, test: OutcomeTable) -> float | None:
    costs = test.cost_usd.mean(axis=0)
    if np.isnan(costs).any() or costs.max() <= costs.min():
        return None
    return metrics.aiq_paper(points, float(costs.min()), float(costs.max()))


def _calibration(quality: Floats, score: Floats) -> float:
    """Expected calibration error over all (query, model) cells, bins of equal count."""
    flat, truth = quality.ravel(), score.ravel()
    bins = np.array_split(np.argsort(flat, kind="stable"), min(BINS, len(flat)))
    return float(sum(len(b) * abs(flat[b].mean() - truth[b].mean()) for b in bins) / len(flat))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
