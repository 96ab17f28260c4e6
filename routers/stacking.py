"""Stacked generalization. Wolpert, Neural Networks 5, 1992; non-negative least squares as in Stacked regressions,
Breiman, Machine Learning 24, 1996. As a router: what leads on average over the published tables (docs/training.md).

    q(x, m) = Σ_b u_b · mean_m f_b(x, ·) + Σ_b v_b · (f_b(x, m) − mean_m f_b(x, ·)) − κ·[m ≠ incumbent]
    (u, v) = argmin_{u, v ≥ 0} Σ_x,m (score(x, m) − q(x, m))²  over out-of-fold f_b

The members f_b, each an estimate of every model's score: the models' means (u_0, v_0), their means within the
predicted category, extremely randomised trees, the same trees cut back, and ridge regression. How hard a query is
(the mean over models) and who is better at it (the deviation) are two problems with weights of their own; least squares
falls apart into the two. The incumbent is the model with the best mean; κ is how much better another must look, chosen
on the out-of-fold estimates. Features: embedding, latent word features, measures of form (`outcomes.text_features`).

Needs: text; embeddings; an artefact (no queries are stored); labels; categories help where the table has them.
Returns: quality, shape (n_queries, n_models), in [0, 1], κ below the mean score expected for all but the incumbent;
cost = the models' mean costs within the predicted category, US dollars.

Differs from the papers: members and their parameters were chosen by cross-validation on training parts of published
tables; folds are by hash of the text, so that copies of a question never straddle. An unknown score counts as the mean
of its category and model, when members and weights are fitted.

Laws: out-of-fold, the stack's squared error is no higher than any member's; members never see a score they are
weighed on; a table without signal gives the incumbent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.forest import Forest, grow
from outcomes.groups import group_means, membership
from outcomes.learning_set import known_means, learning_set, query_vectors, require_fitted
from outcomes.networks import Network, fit_network, ridge, softmax
from outcomes.table import hash_folds
from outcomes.text_features import FORM, TextFeatures
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="stacking",
    title="Stacked generalization (Wolpert) by non-negative least squares (Breiman), as a router",
    year=1992,
    paper="doi 10.1016/S0893-6080(05)80023-1",
    taxonomy="a1",
    contract="router",
    implementation="Stacking",
    needs=frozenset({"text", "embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the weights are SciPy's non-negative least squares of the out-of-fold estimates; no member does better",
            "tests/routers/test_stacking.py::test_no_member_does_better_out_of_fold",
        ),
        Evidence(
            "exact equivalence",
            "the forests estimate what scikit-learn's ExtraTreesRegressor does",
            "tests/outcomes/test_forest.py::test_it_is_scikit_learns_forest",
        ),
        Evidence(
            "invariant",
            "on outcomes without signal every query goes to the incumbent",
            "tests/routers/test_stacking.py::test_without_signal_the_incumbent",
        ),
    ),
    unverified="not a method of the surveyed papers: the combination was found here",
)

FOLDS = 5
PRIOR = 5.0
"""Pseudo-queries of the model's overall mean in every category."""
MEMBERS = ("means", "category", "fine", "coarse", "ridge")
CAUTION = (0.0, 0.01, 0.02, 0.04)
"""The values of κ tried: small, for they come off the estimates."""
TOLD = 3
"""Categories that reasons tell of, at most."""
LARGEST_FOREST = 400
"""Leaves of a tree, about: bounds artefact and time however many queries there are."""


class Stacking:
    """`rank` of the word features; `components` of embedding and words that trees see; `trees`; `leaf`: training
    queries in a leaf, a third of those where the trees are cut back; `penalty` of ridge; `seed`."""

    def __init__(
        self,
        *,
        rank: int = 150,
        components: int = 25,
        trees: int = 100,
        leaf: int = 5,
        penalty: float = 30.0,
        seed: int = 0,
    ) -> None:
        self.rank, self.components, self.trees, self.leaf = rank, components, trees, leaf
        self.penalty, self.seed = penalty, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Weigh the members by what they estimate for queries they have not seen, then fit them on all. Raises
        `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        text = TextFeatures.of(learn.texts, rank=self.rank)
        dense = _dense(text, learn.texts, learn.vectors)
        axes = _principal(learn.vectors, self.components)
        narrow = _narrow(text, dense, axes, self.components)
        names, labels = np.unique(np.array(learn.categories, dtype=np.str_), return_inverse=True)
        category = membership(labels, len(names))
        score = _filled(learn.score, category)
        fold = hash_folds(learn.texts, FOLDS, "stacking fold")
        guessed = np.tile(category.mean(axis=0), (len(learn), 1))
        for held in _parts(fold):
            guessed[held] = softmax(_classifier(dense[~held], category[~held], self.seed)(dense[held]))
        found = np.tile(score.mean(axis=0), (len(MEMBERS), len(learn), 1))
        for held in _parts(fold):
            part = self._members(dense[~held], narrow[~held], guessed[~held], category[~held], score[~held])
            found[:, held] = part(dense[held], narrow[held], guessed[held])
        weights = _weights(found, score)
        incumbent = int(score.mean(axis=0).argmax())
        caution = _caution(_combined(found, weights), score, incumbent)
        members = self._members(dense, narrow, guessed, category, score)
        self._keep(
            learn.models,
            tuple(names.tolist()),
            text,
            axes,
            _classifier(dense, category, self.seed),
            members.with_models(learn.columns),
            weights,
            caution * learn.listed(np.arange(score.shape[1]) != incumbent),
            learn.listed(group_means(category, learn.cost_usd, prior=PRIOR)),
        )
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """The stack's estimates. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, len(self.axes_), METHOD.id)
        guessed, found = self._read(queries.texts, vectors)
        quality = _combined(found, self.weights_) - self.caution_
        return Estimate(self.models_, np.clip(quality, 0.0, 1.0), guessed @ self.category_cost_)

    def reasons(self, queries: Queries) -> dict[str, Any]:
        """What the estimate of one query is the sum of. `members`: the weights u and v of each, and what it adds to
        every model's quality; `caution`: κ, taken from all but the `incumbent`; `categories`: the likeliest, and the
        chance of each. There are no neighbours to tell of: no queries are stored."""
        vectors = query_vectors(queries, len(self.axes_), METHOD.id)
        guessed, found = self._read(queries.texts, vectors)
        added = _added(found, self.weights_)[:, 0]
        members = {
            name: {
                "difficulty": round(hard, 4),
                "difference": round(better, 4),
                "adds": dict(zip(self.models_, np.round(row, 4).tolist(), strict=True)),
            }
            for name, (hard, better), row in zip(MEMBERS, self.weights_.T.tolist(), added, strict=True)
        }
        likely = np.argsort(-guessed[0], kind="stable")[:TOLD].tolist()
        return {
            "members": members,
            "incumbent": self.models_[int(np.argmax(self.members_.means - self.caution_))],
            "caution": float(self.caution_.max()),
            "categories": {self.categories_[i]: round(float(guessed[0, i]), 4) for i in likely},
        }

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("rank", "components", "trees", "leaf", "penalty", "seed")
        parameters = {name: getattr(self, name) for name in names} | {"categories": list(self.categories_)}
        tensors: dict[str, NDArray[Any]] = {
            **self.text_.tensors(),
            **self.members_.tensors(),
            **self.classifier_.tensors(),
            "axes": self.axes_,
            "weights": self.weights_,
            "caution": self.caution_,
            "category_cost": self.category_cost_,
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        parameters, m = dict(manifest.parameters), len(manifest.models)
        named = parameters.pop("categories", None)  # artefacts of before know none
        router = cls(**arguments(cls, replace(manifest, parameters=parameters)))
        text = TextFeatures.read(tensors)
        axes = tensor(tensors, "axes", (None, None))
        cost = tensor(tensors, "category_cost", (None, m), finite=False)
        wide = len(axes) + text.rank + FORM
        narrow = axes.shape[1] + min(router.components, text.rank) + FORM
        categories = tuple(map(str, range(len(cost)) if named is None else named))
        if len(categories) != len(cost):
            raise MethodError(f"{folder} names {len(categories)} categories and has costs in {len(cost)}.")
        router._keep(
            manifest.models,
            categories,
            text,
            axes,
            Network.of(tensors, len(cost)),
            _Members.read(tensors, wide, narrow + len(cost), len(cost), m),
            tensor(tensors, "weights", (2, len(MEMBERS))),
            tensor(tensors, "caution", (m,)),
            cost,
        )
        tensor(tensors, "weight.0", (wide, None))
        return router

    def _keep(
        self,
        models: tuple[str, ...],
        categories: tuple[str, ...],
        text: TextFeatures,
        axes: Floats,
        classifier: Network,
        members: _Members,
        weights: Floats,
        caution: Floats,
        category_cost: Floats,
    ) -> None:
        self.models_, self.categories_ = models, categories
        self.text_, self.axes_, self.classifier_ = text, axes, classifier
        self.members_, self.weights_, self.caution_ = members, weights, caution
        self.category_cost_ = category_cost

    def _read(self, texts: Sequence[str], vectors: Floats) -> tuple[Floats, Floats]:
        """Chances of the categories, shape (n, n_categories), and the members' estimates, (n_members, n, n_models)."""
        dense = _dense(self.text_, texts, vectors)
        guessed = np.asarray(softmax(self.classifier_(dense)), dtype=np.float64)
        return guessed, self.members_(dense, _narrow(self.text_, dense, self.axes_, self.components), guessed)

    def _members(
        self, dense: Floats, narrow: Floats, guessed: Floats, category: Floats, score: Floats
    ) -> _Members:
        """All members, fitted on the same queries."""
        leaf = max(self.leaf, len(score) // LARGEST_FOREST)
        inputs = np.concatenate([narrow, guessed], axis=1)
        forest = grow(inputs, score, trees=self.trees, leaves=(leaf, 3 * leaf), share=0.5, seed=self.seed)
        centre, means = dense.mean(axis=0), score.mean(axis=0)
        slope = ridge(dense - centre, score - means, self.penalty)
        profile = group_means(category, score, prior=PRIOR)
        return _Members(means, profile, forest, slope, means - centre @ slope)


@dataclass(frozen=True, slots=True, eq=False)
class _Members:
    """`means`: (n_models,); `profile`: (n_categories, n_models); ridge's `slope`: (n_features, n_models), `offset`."""

    means: Floats
    profile: Floats
    forest: Forest
    slope: Floats
    offset: Floats

    def __call__(self, dense: Floats, narrow: Floats, guessed: Floats) -> Floats:
        """Every member's estimates, shape (n_members, n_queries, n_models)."""
        inputs = np.concatenate([narrow, guessed], axis=1)
        means = np.broadcast_to(self.means, (len(dense), len(self.means)))
        line = dense @ self.slope + self.offset
        return np.stack([means, guessed @ self.profile, *self.forest(inputs), line])

    def with_models(self, columns: NDArray[np.intp]) -> _Members:
        """The same with the models in another order."""
        means, profile, forest = (
            self.means[columns],
            self.profile[:, columns],
            self.forest.with_outputs(columns),
        )
        return _Members(means, profile, forest, self.slope[:, columns], self.offset[columns])

    def tensors(self) -> dict[str, NDArray[Any]]:
        own = {name: getattr(self, name) for name in ("means", "profile", "slope", "offset")}
        return {**own, **self.forest.tensors("forest")}

    @classmethod
    def read(
        cls, tensors: Mapping[str, NDArray[Any]], wide: int, narrow: int, categories: int, m: int
    ) -> _Members:
        return cls(
            tensor(tensors, "means", (m,)),
            tensor(tensors, "profile", (categories, m)),
            Forest.read(tensors, "forest", narrow, 2, m),
            tensor(tensors, "slope", (wide, m)),
            tensor(tensors, "offset", (m,)),
        )


def _combined(found: Floats, weights: Floats) -> Floats:
    """The stack's estimates from its members', shape (n_queries, n_models)."""
    return np.asarray(_added(found, weights).sum(axis=0))


def _added(found: Floats, weights: Floats) -> Floats:
    """What every member adds under the weights (u, v), shape (n_members, n_queries, n_models)."""
    common = found.mean(axis=2, keepdims=True)
    hard, better = weights[:, :, None, None]
    return np.asarray(hard * common + better * (found - common), dtype=np.float64)


def _weights(found: Floats, score: Floats) -> Floats:
    """(u, v), shape (2, n_members)."""
    from scipy.optimize import nnls

    common, own = found.mean(axis=2), score.mean(axis=1)
    hard, _ = nnls(common.T, own)
    apart = (found - common[:, :, None]).reshape(len(found), -1)
    better, _ = nnls(apart.T, (score - own[:, None]).ravel())
    return np.stack([hard, better])


def _caution(quality: Floats, score: Floats, incumbent: int) -> float:
    """The κ whose choices score best out of fold; of equal ones the largest."""
    others = np.arange(score.shape[1]) != incumbent
    rows = np.arange(len(score))
    realised = [score[rows, (quality - kappa * others).argmax(axis=1)].mean() for kappa in CAUTION]
    return max(zip(np.round(realised, 9), CAUTION, strict=True))[1]


def _dense(text: TextFeatures, texts: Any, vectors: Floats) -> Floats:
    """Embedding, word features and measures side by side, each scaled to matter about alike to a linear member."""
    return np.concatenate([1.5 * vectors, text.words(texts), 0.15 * text.measures(texts)], axis=1)


def _narrow(text: TextFeatures, dense: Floats, axes: Floats, components: int) -> Floats:
    """What trees split on: a few components of embedding and words, and the measures."""
    d = len(axes)
    words = dense[:, d : d + min(components, text.rank)]
    return np.concatenate([dense[:, :d] @ axes, words, dense[:, d + text.rank :]], axis=1)


def _principal(vectors: Floats, components: int) -> Floats:
    """The leading principal axes of the embeddings, shape (dimensions, components), signs fixed."""
    _, vectors_of = np.linalg.eigh(np.cov(vectors, rowvar=False).reshape(vectors.shape[1], -1))
    axes = vectors_of[:, ::-1][:, :components]
    return np.asarray(
        axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]), dtype=np.float64
    )


def _classifier(dense: Floats, category: Floats, seed: int) -> Network:
    """A linear softmax classifier of the category."""
    return fit_network(
        4.0 * dense,
        category.shape[1],
        lambda rows, out: softmax(out) - category[rows],
        epochs=20,
        decay=0.1,
        rate=3e-3,
        seed=seed,
    ).scaled(4.0)


def _filled(score: Floats, category: Floats) -> Floats:
    """Scores with the unknown ones replaced by the mean of the model in that category."""
    expected = category @ group_means(category, score, prior=PRIOR)
    overall = np.nan_to_num(known_means(score))
    return np.where(np.isnan(score), np.where(np.isnan(expected), overall, expected), score)


def _parts(fold: NDArray[np.intp]) -> list[NDArray[np.bool_]]:
    """The held-out rows of every fold that leaves something to learn from."""
    masks = [fold == i for i in range(FOLDS)]
    return [held for held in masks if held.any() and not held.all()]
