"""EVA: align vocabularies by projecting embeddings, then ensemble in the pivot model's vocabulary.

"Bridging the Gap between Different Vocabularies for LLM Ensemble", Xu et al., NAACL 2024, arXiv 2404.09492.

    q_m = Sᵀ p_m      q = mean of q_m over the members that survive the filter

p_m is the softmax of member m's `top_k` largest logits; S, of shape (|V_m|, |V_pivot|), says how similar
their tokens are; a member survives when its most likely pivot token is among the first `drop` of some other
member (all do when none does). S comes from output embeddings alone (VecMap, supervised): both sides are
scaled to length 1, centred, scaled again; whitened on the dictionary, X (XᵀX)^-½; rotated by the U and V of
the SVD XᵀZ = U s Vᵀ; scaled by √s; de-whitened. Then S[i, j] is the similarity 2 cos(x_i, z_j) −
max_i' cos(x_i', z_j) of i's ten best j, above `threshold`; a row whose values hardly differ says nothing and
is emptied.

*Needs* full logits, and the output embeddings, at `bind`. Fitting S takes minutes for large vocabularies;
`projection` names a file where it is kept. *Returns* q over pivot tokens, scaled to sum to 1.

*Differs from the paper.* The dictionary is the symbols with equal bytes, where the authors compare raw token
strings (between byte-level and SentencePiece vocabularies those share no token that begins a word). Spaces of
different width are cut to the smaller one after the rotation. Ends map to the end, and controls are no
symbols, where the authors take the first three ids for both. Members have weights (the mean is weighted).
Helpers keep their caches. A member with the pivot's own table is not projected. `linear_sum` is left out.

*Laws.* One-hot weights give the pivot; a copy of the pivot is not changed by its projection (S, fitted, has
the largest entry of nearly every row on the diagonal); the mapping equals VecMap's arithmetic in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensembles.options import whole
from ensembles.tokens.base import Ask, Decision, Mixture, Step, Tables
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EVA", "METHOD", "BoundEVA", "Projection", "project", "vecmap"]

_SMALL = "tests/ensembles/tokens/test_eva.py"

METHOD = Method(
    id="eva",
    title="EVA: vocabulary alignment by embedding projection",
    year=2024,
    paper="arXiv:2404.09492",
    taxonomy="b1",
    contract="fusion",
    implementation="EVA",
    needs=frozenset({"full-logits", "embeddings"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the mapping equals VecMap's steps written with numpy",
            f"{_SMALL}::test_the_mapping_equals_vecmap",
        ),
        Evidence(
            "invariant",
            "a model projected on itself keeps more than 95 % of its tokens",
            f"{_SMALL}::test_a_model_projected_on_itself_keeps_its_tokens",
        ),
        Evidence(
            "invariant",
            "the filter drops who stands alone",
            f"{_SMALL}::test_the_filter",
        ),
        Evidence(
            "invariant",
            "tokens hidden from the dictionary are found again on the real pair far above chance",
            f"{_SMALL}::test_hidden_tokens_are_found_on_the_real_pair",
        ),
    ),
    unverified="Texts are compared with an independent loop on two real models in "
    "benchmarks/results/exactness.md. The paper's scores are recalled and not reproduced. The projected mass of a "
    "helper is not 1, by design, so helpers with similar embeddings count more.",
)

BEST, FEW, FLAT = 10, 5, 0.01
"""Similarities kept a token; with more than FEW left and a standard deviation up to FLAT, none is kept."""
CHUNK = 2048
"""Rows compared at a time."""


@dataclass(frozen=True, slots=True)
class EVA:
    """Options; `bind` gives the fusion. `drop` = 0 switches the filter off."""

    pivot: int = 0
    top_k: int = 320
    drop: int = 5
    threshold: float = 0.1
    projection: str | None = None

    def __post_init__(self) -> None:
        whole(METHOD.id, 0, pivot=self.pivot, drop=self.drop)
        whole(METHOD.id, 1, top_k=self.top_k)
        if not isinstance(self.threshold, int | float):
            raise SettingsError(f"eva: threshold must be a number, got {self.threshold!r}.")
        if self.projection is not None and not isinstance(self.projection, str):
            raise SettingsError(f"eva: projection must be a path, got {self.projection!r}.")

    def decide(self, step: Step) -> Decision:
        """Raises `SettingsError`: it must be bound to models first."""
        raise SettingsError("eva needs the members' embeddings: bind it to a team first.")

    def bind(self, tables: Tables) -> BoundEVA:
        """Fit S of every helper, or read it from the file `projection`."""
        if self.pivot >= tables.members:
            raise SettingsError(f"eva: pivot is {self.pivot}, but there are {tables.members} members.")
        kept = Path(self.projection).expanduser() if self.projection is not None else None
        helpers = [m for m in range(tables.members) if m != self.pivot]
        if kept is not None and kept.is_file():
            return BoundEVA(self, _read(kept, helpers, tables))
        fitted = {m: fit(tables, m, self.pivot, self.threshold) for m in helpers}
        if kept is not None:
            _write(kept, fitted)
        return BoundEVA(self, fitted)


@dataclass(frozen=True, slots=True)
class Projection:
    """The rows of S: for the helper's `symbols`, ascending, shape (n,), the pivot symbols `best` and their
    similarities `score`, both (n, ≤ 10), 0 where nothing was kept."""

    symbols: Tensor
    best: Tensor
    score: Tensor

    def image(self, symbols: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Sᵀ p for the probabilities `p` of `symbols`: pivot symbols, repeated, and what each gets."""
        import torch

        rows = torch.searchsorted(self.symbols, symbols)
        return self.best[rows].flatten(), (p[:, None] * self.score[rows]).flatten()


@dataclass(frozen=True, slots=True)
class BoundEVA:
    """EVA over one team; None stands for a helper that has the pivot's own tokens and embeddings."""

    options: EVA
    projections: dict[int, Projection | None]

    def decide(self, step: Step) -> Decision:
        """The q of the step, or the members still wanted: all that have a weight."""
        import torch

        heard = frozenset(m for m, w in enumerate(step.weights) if w > 0)
        if missing := heard - step.logits.keys():
            return Ask(missing)
        order = sorted(heard)
        images = [self._image(step, m) for m in order]
        symbols, places = torch.unique(torch.cat([u for u, _ in images]), return_inverse=True)
        pieces = places.split([u.shape[0] for u, _ in images])
        q = torch.zeros(len(order), symbols.shape[0])
        for row, piece, (_, p) in zip(q, pieces, images, strict=True):
            row.index_add_(0, piece, p)
        weights = torch.tensor([step.weights[m] for m in order])
        mixed = (weights * survivors(q, self.options.drop)) @ q
        if not float(mixed.sum()) > 0:  # nobody's tokens have an image
            mixed = weights @ q
        return Mixture(mixed / mixed.sum(), symbols)

    def _image(self, step: Step, member: int) -> tuple[Tensor, Tensor]:
        """The member's softmax over its largest logits, and where in the pivot it goes."""
        symbols, _ = step.alphabet.top(member, step.logits[member], self.options.top_k)
        p = step.alphabet.read(member, step.logits[member], symbols).softmax(-1)
        projection = None if member == self.options.pivot else self.projections[member]
        return (symbols, p) if projection is None else projection.image(symbols, p)


def survivors(q: Tensor, drop: int) -> Tensor:
    """1.0 for members, rows of `q`, whose largest entry is among the `drop` largest of some other row; for all
    when there is none, and without the filter."""
    import torch

    count = q.shape[0]
    if drop == 0 or count == 1:
        return torch.ones(count)
    values, first = q.topk(min(drop, q.shape[1]))
    inside = [
        float(values[m, 0]) > 0
        and any(bool(((first[o] == first[m, 0]) & (values[o] > 0)).any()) for o in range(count) if o != m)
        for m in range(count)
    ]
    return torch.tensor(inside).float() if any(inside) else torch.ones(count)


def fit(tables: Tables, helper: int, pivot: int, threshold: float) -> Projection | None:
    """S of one helper. None where its tokens and embeddings are the pivot's."""
    import torch

    alphabet = tables.alphabet
    own, theirs = (_texts(tables, m) for m in (helper, pivot))
    x, z = (tables.embeddings(m, u, "output") for m, u in ((helper, own), (pivot, theirs)))
    if torch.equal(own, theirs) and torch.equal(x, z):
        return None
    both = alphabet.shared(frozenset({helper, pivot}))
    both = both[both != alphabet.eos]
    if not both.shape[0]:
        raise SettingsError("eva: a helper's vocabulary has no token in common with the pivot's.")
    x, z = vecmap(x, z, torch.searchsorted(own, both), torch.searchsorted(theirs, both))
    best, score = project(x, z, threshold)
    # The end stands alone: its image is the end, whatever the embeddings say.
    end = own.new_full((1, best.shape[1]), alphabet.eos)
    one = torch.zeros(1, best.shape[1])
    one[0, 0] = 1.0
    return Projection(
        torch.cat([own, own.new_tensor([alphabet.eos])]),
        torch.cat([theirs[best], end]),
        torch.cat([score, one]),
    )


def vecmap(x: Tensor, z: Tensor, x_words: Tensor, z_words: Tensor) -> tuple[Tensor, Tensor]:
    """Both tables, (n, d_x) and (k, d_z), in one space of min(d_x, d_z) dimensions, rows of length 1.

    Row x_words[i] of `x` and row z_words[i] of `z` mean the same."""
    import torch

    x, z = (_unit(_centred(_unit(table.double()))) for table in (x, z))
    wx, wz = _whitening(x[x_words]), _whitening(z[z_words])
    u, s, vt = torch.linalg.svd((x[x_words] @ wx).T @ (z[z_words] @ wz), full_matrices=True)
    width = s.shape[0]
    root = s.clamp_min(0).sqrt()
    mapped = []
    for table, white, turn in ((x, wx, u), (z, wz, vt.T)):
        back = turn.T @ torch.linalg.pinv(white) @ turn
        mapped.append(_unit((table @ (white @ turn))[:, :width] * root @ back[:width, :width]).float())
    return mapped[0], mapped[1]


def project(x: Tensor, z: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The ten best j of every row i of `x` by 2 cos(x_i, z_j) − max_i' cos(x_i', z_j), and these values, 0
    where dropped. Rows have length 1."""
    import torch

    hub = torch.full((z.shape[0],), -1.0)
    for rows in x.split(CHUNK):  # type: ignore[no-untyped-call]
        hub = torch.maximum(hub, (rows @ z.T).amax(0))
    best, score = [], []
    for rows in x.split(CHUNK):  # type: ignore[no-untyped-call]
        values, places = (2 * (rows @ z.T) - hub).topk(min(BEST, z.shape[0]))
        kept = values >= threshold
        spread = torch.stack(
            [
                v[k].std(unbiased=False) if k.any() else v.new_zeros(())
                for v, k in zip(values, kept, strict=True)
            ]
        )
        kept &= ~((kept.sum(-1) > FEW) & (spread <= FLAT))[:, None]
        best.append(places)
        score.append(values.masked_fill(~kept, 0.0))
    return torch.cat(best), torch.cat(score)


def _texts(tables: Tables, member: int) -> Tensor:
    """The member's symbols, ends excluded, ascending."""
    own = tables.alphabet.shared(frozenset({member}))
    return own[own != tables.alphabet.eos]


def _unit(rows: Tensor) -> Tensor:
    length: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows / length.clamp_min(1e-12)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)


def _whitening(words: Tensor) -> Tensor:
    """(XᵀX)^-½; directions that the dictionary does not reach are left at 0."""
    import torch

    _, s, vt = torch.linalg.svd(words, full_matrices=False)
    inverse = torch.where(s > 1e-9 * s.max(), 1 / s, torch.zeros_like(s))
    white: Tensor = vt.T * inverse @ vt
    return white


def _write(path: Path, fitted: dict[int, Projection | None]) -> None:
    """Keep the projections in a safetensors file; a helper that needs none has no entry."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{m}.{name}": getattr(one, name).contiguous()
        for m, one in fitted.items()
        if one is not None
        for name in ("symbols", "best", "score")
    }
    save_file(tensors, path)


def _read(path: Path, helpers: list[int], tables: Tables) -> dict[int, Projection | None]:
    """Read projections; raises `SettingsError` where they were fitted for other vocabularies."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    out: dict[int, Projection | None] = {}
    for m in helpers:
        if f"{m}.symbols" not in tensors:
            out[m] = None
            continue
        one = Projection(*(tensors[f"{m}.{name}"] for name in ("symbols", "best", "score")))
        if not one.symbols.equal(tables.alphabet.shared(frozenset({m}))):
            raise SettingsError(
                f"eva: {path} was fitted for other vocabularies; delete it, or name another file."
            )
        out[m] = one
    return out
