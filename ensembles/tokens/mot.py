"""Mixture of Thoughts: one model writes, and takes in at several depths what others think at the same place.

"Mixture of Thoughts: Learning to Aggregate What Experts Think, Not Just What They Say", Fein-Ashley et al., 2025,
arXiv 2509.21164.

    s = router(prompt)        active: the K best        the writer: argmax s
    after each of Q stacks of layers:   h ← h + R·CrossAttn(P h, P h_active)      (`ensembles/networks/mixture.py`)
    next token ~ the writer's own distribution over its own vocabulary

Experts are frozen: only router, projections and attention learn (`python -m engines.train_mot`, on the writer's
language-model loss). The prompt's vector comes from a frozen encoder, the packaged sentence embedder. Served, the
members are ordinary engines: at each token the others read the text first, the writer then, and a visitor
(`ensembles.tokens.base.Visits`) carries what they thought into the writer's layers.

*Needs* its members' hidden states, to see and to change, and a fitted artefact. *Returns* q over all symbols: the
writer's.

*Differs from the paper*, of which no code was to be had. Tokens of different vocabularies meet by bytes: another
model's token is seen once it has ended, so that nothing of the future leaks. Each of the Q stacks ends where the
model's depth divided by Q says, the last one before the final norm. Attention falls off with distance. The router
learns from each model's loss as a writer, exactly, where the paper samples; its loss for consistent routing is left
out.

*Laws.* R = 0 is the writer alone; nothing depends on bytes to come; experts have no gradient; with K = 1 the writer
sees its own thoughts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensembles.networks.mixture import Latents, Mixture
from ensembles.options import the_part, whole
from ensembles.tokens.base import Ask, Decision, Opening, Step, Tables
from ensembles.tokens.base import Mixture as Mixed
from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from outcomes.embedder import load_embedder
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

    from outcomes.embedder import ServedEmbedder

__all__ = ["METHOD", "Fitted", "MoT", "stacks"]

_SMALL = "tests/ensembles/networks/test_mixture.py"
_REAL = "tests/engines/test_train_mot.py"

METHOD = Method(
    id="mot",
    title="Mixture of Thoughts: a model that takes in what others think",
    year=2025,
    paper="arXiv:2509.21164",
    taxonomy="b1",
    contract="fusion",
    implementation="MoT",
    needs=frozenset({"hidden-states", "artefact", "embedding"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "with the shipped mixture, texts and q equal an independent loop on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_of_methods_that_look_inside_equal_a_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "with R = 0 a served text is the writer's own, byte for byte, on the real pair",
            f"{_REAL}::test_a_served_mixture",
        ),
        Evidence(
            "exact equivalence",
            "what the engines compute token by token is what training computes over the whole text",
            f"{_REAL}::test_a_served_mixture",
        ),
        Evidence(
            "invariant",
            "bytes to come change nothing before them, members being of different length and padded",
            f"{_SMALL}::test_nothing_ahead_is_seen",
        ),
        Evidence(
            "invariant",
            "training lowers the language-model loss and leaves the experts without a gradient",
            f"{_REAL}::test_training_lowers_the_loss",
        ),
    ),
    unverified="Written from the abstract and digests; K, Q, the attention's size and the losses are not the authors'. "
    "None of the paper's figures is reproduced; what it brings to the two small models is in "
    "benchmarks/results/inside.md.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was learnt: the network, for members of these `depths` and weights (`Tables.digest`), and the `embedder`
    that its router reads."""

    mixture: Mixture
    depths: tuple[int, ...]
    members: tuple[str, ...]
    embedder: str

    @classmethod
    def load(cls, folder: Path) -> Fitted:
        """From an artefact. Raises `MethodError`."""
        import torch

        manifest, found = load_artefact(folder, method=METHOD.id)
        about = manifest.parameters
        points, depths, digests = (about.get(name) for name in ("points", "depths", "members"))
        if (
            not isinstance(points, int)
            or not 0 < points < 256
            or not isinstance(depths, list)
            or not isinstance(digests, list)
            or len(depths) != len(digests)
        ):
            raise MethodError(f"{folder} is not an artefact of {METHOD.id}: it says {dict(about)}.")
        hidden, embedding = tensor(found, "router.in", (None, None)).shape
        widths = [tensor(found, f"R.{m}.0", (None, None)).shape[0] for m in range(len(depths))]
        size = tensor(found, "R.0.0", (None, None)).shape[1]
        empty = Mixture.new(widths, embedding, points=points, size=size, hidden=hidden)
        weights = {
            name: torch.tensor(tensor(found, name, tuple(x.shape))) for name, x in empty.weights.items()
        }
        return cls(Mixture(weights, points), tuple(depths), tuple(digests), manifest.embedder)

    def save(self, folder: Path, models: Sequence[str], **about: Any) -> Manifest:
        """Write the artefact. `about`: further fields of its manifest."""
        parameters = {
            "points": self.mixture.points,
            "depths": list(self.depths),
            "members": list(self.members),
        }
        manifest = Manifest(
            method=METHOD.id, models=tuple(models), parameters=parameters, embedder=self.embedder, **about
        )
        tensors = {name: value.detach().numpy() for name, value in self.mixture.weights.items()}
        return save_artefact(folder, manifest, tensors)


@dataclass(frozen=True, eq=False)
class MoT:
    """`embedder`, the weights of the encoder that its router reads; `active` K; `writer`, a member that writes
    always, in the router's place. `fitted`, what was learnt, and `encoder` are set by `load`, `chosen`, the writer and
    the active members, by `open`. Where nothing was learnt nothing is mixed in, and without a router the member with
    the largest weight writes."""

    embedder: str | None = None
    active: int = 2
    writer: int | None = None
    fitted: Fitted | None = None
    encoder: ServedEmbedder | None = None
    chosen: tuple[int, frozenset[int]] | None = None

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, active=self.active)
        if self.writer is not None:
            whole(METHOD.id, 0, writer=self.writer)

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> MoT:
        """With the `mixture` among the artefacts, where there is one, and the encoder. Raises `MethodError`, and
        `ArtefactMismatch` where the encoder is not the one that was trained with it."""
        if self.writer is not None and self.writer >= len(members):
            raise SettingsError(f"{METHOD.id}: writer {self.writer} is not among the {len(members)} members.")
        if (folder := the_part(METHOD.id, "mixture", artefacts)) is None:
            return self
        fitted, encoder = Fitted.load(folder), None
        if self.embedder is not None:
            encoder = load_embedder(Path(self.embedder))
            if encoder.id != fitted.embedder:
                raise ArtefactMismatch(f"The mixture's router reads {fitted.embedder}, not {encoder.id}.")
        return replace(self, fitted=fitted, encoder=encoder)

    def bind(self, tables: Tables) -> MoT:
        """As it is. Raises `ArtefactMismatch` where the members are not those that were trained."""
        found = tuple(tables.digest(m) for m in range(tables.members))
        if self.fitted is not None and found != self.fitted.members:
            raise ArtefactMismatch(
                f"The mixture was trained for members with weights {', '.join(self.fitted.members)}, and those here "
                f"have {', '.join(found)}. Train anew."
            )
        return self

    def open(self, opening: Opening) -> MoT:
        """With this request's writer and active members; a member without weight is neither."""
        if self.fitted is None:
            return self
        weights = opening.weights
        rank = {m: w for m, w in enumerate(weights) if w > 0}
        if self.encoder is not None and self.writer is None:
            import torch

            vector = self.encoder.embed([opening.text.decode(errors="replace")])
            scores = self.fitted.mixture.scores(torch.from_numpy(vector))[0]
            rank = {m: float(scores[m]) for m in rank}
        best = sorted(rank, key=lambda m: (m != self.writer, -rank[m]))
        return replace(self, chosen=(best[0], frozenset(best[: self.active])))

    def visitor(self) -> _Visitor:
        """What carries thoughts from the other active members to the writer."""
        if self.fitted is None or self.chosen is None:
            return _Visitor({}, None)
        layers = {m: stacks(self.fitted.depths[m], self.fitted.mixture.points) for m in self.chosen[1]}
        return _Visitor(layers, Latents(self.fitted.mixture, *self.chosen))

    def decide(self, step: Step) -> Decision:
        """The writer's q, or the members still wanted: the other active ones first, since the writer computes with
        what they thought."""
        writer = step.weights.index(max(step.weights)) if self.writer is None else self.writer
        peers: frozenset[int] = frozenset()
        if self.chosen is not None:
            writer, peers = self.chosen[0], self.chosen[1] - {self.chosen[0]}
        if missing := peers - step.logits.keys():
            return Ask(missing)
        if writer not in step.logits:
            return Ask(frozenset({writer}))
        return Mixed(step.alphabet.project(writer, step.logits[writer]), author=writer)


@dataclass(frozen=True, slots=True, eq=False)
class _Visitor:
    """`ensembles.tokens.base.Visitor` for one text."""

    layers: Mapping[int, tuple[int, ...]]
    latents: Latents | None

    def visit(self, member: int, layer: int, first: int, states: Tensor, ends: Tensor) -> Tensor | None:
        """See `Visitor.visit`."""
        assert self.latents is not None
        point = self.layers[member].index(layer)
        change = self.latents.visit(member, point, first, states[None], ends[None])
        return None if change is None else change[0]


def stacks(depth: int, points: int) -> tuple[int, ...]:
    """Where the stacks of a model of `depth` layers end."""
    return tuple(depth * (q + 1) // points for q in range(points))
