"""DeePEn: average in a space of similarities to common tokens, and search the way back.

"Ensemble Learning for Heterogeneous Large Language Models with Deep Parallel Collaboration", Huang et al.,
NeurIPS 2024, arXiv 2404.12715.

    T_m = softmax_rows(100 · norm(R_m)),  R_m[i, a] = cos(e_i, e_a)     r_m = p_m T_m     r̄ = Σ_m w_m r_m
    z ← z_main;  five times:  z ← AdamW step on  L(z) = mean_a r̄_a (log r̄_a − log r_a),  r = softmax(z) T_main

The anchors a are tokens that all vocabularies share, e the input embeddings, p_m the members' next-token
distributions, w_m their weights; `main` is the member whose logits are moved. The rate follows a cosine from
η (`eta`) down to η/4 over ten steps, of which five are done. Next is argmax z.

*Needs* full logits of every member, and the embeddings, at `bind`. *Returns* q = softmax(z) over main's most
likely symbols.

*Differs from the paper.* The full T of a 262,144-token model over 46,145 anchors is 48 GB, so `anchors` of
the shared symbols are drawn with a fixed seed, and rows of T are computed for the `rows` most likely symbols
of each member only, whose probabilities are scaled to sum to 1 (`anchors=0` and `rows` ≥ |V| are the paper's
method). The search is done in float64, with the gradient written out. Symbols are byte strings. Helpers keep
their caches. AdamW's decay is off by default (`decay`; the authors leave torch's 0.01 on): it scales all
logits and only disturbs q. A logit whose slope is within rounding of the members' logits is not moved (`NOISE`).
`reduction="mean"` is the authors'; AdamW does not move logits whose gradient is
far below 1e-8, so the mean over many anchors moves fewer than the sum.

*The greedy short cut.* Five bias-corrected AdamW steps move a logit by at most the sum of their rates, 4.5 η.
So a token that leads by more than twice that stays in front whatever the helpers say, and they are not asked.

*Laws.* Rows of T and r̄ sum to 1; η = 0, and one-hot weights on main, give main; copies of one model give it
(r̄ = r up to rounding, no gradient); L falls; the gradient and the five steps equal torch's autograd, AdamW and cosine
schedule; the short cut changes no text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ensembles.options import one_of, whole
from ensembles.tokens.base import Ask, Decision, Mixture, Step, Tables
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHOD", "BoundDeePEn", "DeePEn"]

Reduction = Literal["mean", "sum"]

_SMALL = "tests/ensembles/tokens/test_deepen.py"

METHOD = Method(
    id="deepen",
    title="DeePEn: deep parallel collaboration in relative space",
    year=2024,
    paper="arXiv:2404.12715",
    taxonomy="b1",
    contract="fusion",
    implementation="DeePEn",
    needs=frozenset({"full-logits", "embeddings"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the search equals torch's autograd, AdamW and cosine schedule on a toy, within 1e-6",
            f"{_SMALL}::test_the_search_equals_autograd_and_adamw",
        ),
        Evidence(
            "exact equivalence",
            "the greedy short cut changes no decision",
            f"{_SMALL}::test_the_short_cut_changes_no_decision",
        ),
        Evidence(
            "exact equivalence",
            "texts and q equal an independent computation with transformers on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_equal_a_plain_loop",
        ),
        Evidence("invariant", "the loss falls over the five steps", f"{_SMALL}::test_the_loss_falls"),
    ),
    unverified="η was tuned on development sets by the authors (0.15 in their example; the grid is recalled). "
    "Anchors and rows are a sample of the paper's. The authors' vote on digits and their handling of helpers "
    "that are late are left out. No score was reproduced.",
)

STEPS, PERIOD, FLOOR = 5, 10, 0.25
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
NOISE = 1e-4
"""Slopes smaller than this part of r̄ are rounding: of two copies of one model, whose float32 logits come from different
batches, they were 1.2e-5 at most. AdamW, which divides by a gradient's size, would make steps of them, of up to
0.4 in a logit when seen, so that copies of one model drifted apart from it."""
RATES = tuple(FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * t / PERIOD)) / 2 for t in range(STEPS))
"""Rate of each step, in units of η."""
REACH = 1.01 * sum(RATES)
"""How far, in units of η, a logit can move: |m̂|/√v̂ is at most 1.003 in five steps."""


@dataclass(frozen=True, slots=True)
class DeePEn:
    """Options; `bind` gives the fusion. `anchors` = 0 takes all shared symbols."""

    eta: float = 0.15
    main: int = 0
    anchors: int = 4096
    rows: int = 256
    reduction: Reduction = "mean"
    decay: float = 0.0
    sharpness: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("eta", 0, 10), ("decay", 0, 1), ("sharpness", 0, 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise SettingsError(f"deepen: {name} must be between {low} and {high:g}, got {value!r}.")
        whole(METHOD.id, 0, main=self.main, anchors=self.anchors, seed=self.seed)
        whole(METHOD.id, 2, rows=self.rows)
        one_of(METHOD.id, Reduction, reduction=self.reduction)

    def decide(self, step: Step) -> Decision:
        """Raises `SettingsError`: it must be bound to models first."""
        raise SettingsError("deepen needs the members' embeddings: bind it to a team first.")

    def bind(self, tables: Tables) -> BoundDeePEn:
        """Draw the anchors and keep every member's embeddings of them, normalised."""
        import torch

        if self.main >= tables.members:
            raise SettingsError(f"deepen: main is {self.main}, but there are {tables.members} members.")
        shared = tables.alphabet.shared(frozenset(range(tables.members)))
        shared = shared[shared != tables.alphabet.eos]
        if not shared.shape[0]:
            raise SettingsError("deepen: the members' vocabularies have no token in common.")
        if 0 < self.anchors < shared.shape[0]:
            draw = torch.randperm(shared.shape[0], generator=torch.Generator().manual_seed(self.seed))
            shared = shared[draw[: self.anchors].sort().values]
        anchors = tuple(_unit(tables.embeddings(m, shared, "input")) for m in range(tables.members))
        return BoundDeePEn(self, tables, anchors)


@dataclass(frozen=True, slots=True)
class BoundDeePEn:
    """DeePEn over one team. `anchors[m]` has shape (|A|, d_m), rows of length 1."""

    options: DeePEn
    tables: Tables
    anchors: tuple[Tensor, ...]

    def decide(self, step: Step) -> Decision:
        """Main first; then, unless it decides alone, all helpers that have a weight."""
        o = self.options
        if o.main not in step.logits:
            return Ask(frozenset({o.main}))
        symbols, z, p = self._likely(step, o.main)
        helpers = frozenset(m for m, w in enumerate(step.weights) if w > 0) - {o.main}
        if o.eta <= 1e-6 or not helpers or int(symbols[0]) == step.alphabet.eos:
            return Mixture(step.alphabet.project(o.main, step.logits[o.main]))
        if step.greedy and self._decided(z):
            return Mixture(p.float(), symbols)
        if missing := helpers - step.logits.keys():
            return Ask(missing)
        table = self.relative(o.main, symbols)
        target = p @ table * step.weights[o.main]
        for m in sorted(helpers):
            entries, _, p_m = self._likely(step, m)
            target = target + p_m @ self.relative(m, entries) * step.weights[m]
        return Mixture(search(z, table, target, o).softmax(-1).float(), symbols)

    def relative(self, member: int, symbols: Tensor) -> Tensor:
        """Rows of T_m: shape (n, |A|), float64, each summing to 1."""
        e = _unit(self.tables.embeddings(member, symbols, "input"))
        return (self.options.sharpness * _unit((e @ self.anchors[member].T).double())).softmax(-1)

    def _likely(self, step: Step, member: int) -> tuple[Tensor, Tensor, Tensor]:
        """The member's `rows` most likely symbols, best first; their logits and probabilities among
        themselves, float64."""
        import torch

        symbols, _ = step.alphabet.top(member, step.logits[member], self.options.rows)
        z = step.alphabet.read(member, step.logits[member], symbols).double()
        order = torch.argsort(z, descending=True, stable=True)
        symbols, z = symbols[order], z[order]
        return symbols, z, z.softmax(-1)

    def _decided(self, z: Tensor) -> bool:
        """Whether the first of `z`, descending, leads by more than the search can make up."""
        shrink = (1 - self.options.eta * self.options.decay) ** STEPS
        return z.shape[0] < 2 or float(z[0] - z[1]) * shrink > 2 * REACH * self.options.eta


def search(z: Tensor, table: Tensor, target: Tensor, options: DeePEn) -> Tensor:
    """The logits z, shape (n,), after the five steps towards r̄ = `target`, shape (|A|,), through T_main =
    `table`, shape (n, |A|). All float64; `z` is not changed."""
    import torch

    share = 1 / target.shape[0] if options.reduction == "mean" else 1.0
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for t, rate in enumerate(RATES, start=1):
        p = z.softmax(-1)
        slope = table @ (-share * target / (p @ table))  # dL/dp
        slope = slope - p @ slope
        gradient = p * slope.masked_fill(slope.abs() < NOISE * share, 0.0)  # through the softmax
        first = BETA1 * first + (1 - BETA1) * gradient
        second = BETA2 * second + (1 - BETA2) * gradient**2
        eta = rate * options.eta
        z = z * (1 - eta * options.decay)
        z = z - eta * (first / (1 - BETA1**t)) / ((second / (1 - BETA2**t)).sqrt() + EPSILON)
    return z


def _unit(rows: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    length: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows / length.clamp_min(1e-12)
