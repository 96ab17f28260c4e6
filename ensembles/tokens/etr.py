"""ETR: each expert model is one more token of a meta model; generating it hands the text over.

"An Expert is Worth One Token: Synergizing Multiple Expert LLMs as Generalist via Expert Token Routing", Chai et al.,
2024, arXiv 2403.16854.

    z⁺ = [z; E h]        E, shape (K, d): a row an expert; h: the meta model's state after its final norm

The meta model writes greedily over its vocabulary and K expert tokens. Where the k-th expert token is the most likely,
it is not written: expert k goes on with the same assistant text, under its own template, to its end. All is frozen
but E, which starts as the mean row of the output head and learns by cross-entropy over all |V| + K tokens (`fit`),
ordinary ones too, so that experts are not called everywhere.

An expert token is no symbol: it comes in no text, no stream and no prompt. The meta model costs nothing while an expert
writes. With `follow` n it reads along, n symbols in one forward, and may hand over again; `switches` bounds how often.

*Needs* full logits of the member that writes, hidden states of the meta model, and an artefact: `chorus teach`.
*Returns* the distribution p of the member that writes, which is also told (`author`).

*Differs from the paper.* Experts need not be copies of the meta model, nor have its vocabulary: an expert reads what
stands there in its own tokens. A weight of 0 keeps an expert out. `bias` is added to the experts' logits: −∞ never
calls them. At a temperature above 0 words are drawn; who writes them is still the likelier of token and expert. In the
authors' code experts have expert tokens too; here only the meta model has, and may switch again where it reads along.

*Laws.* E = −∞ gives the meta model's text; a call after n symbols gives these and expert k's continuation of them; only
E has a gradient, and the loss is that of the whole model with its head extended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ensembles.options import the_part, whole
from ensembles.tokens.base import Ask, Decision, Step, alone
from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from protocol.errors import ArtefactMismatch, SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ETR", "METHOD", "Conversation", "fit", "loss"]

_SMALL = "tests/ensembles/tokens/test_etr.py"
_REAL = "tests/engines/test_inside.py"

METHOD = Method(
    id="etr",
    title="ETR: each expert is one token of a meta model",
    year=2024,
    paper="arXiv:2403.16854",
    taxonomy="a1",
    contract="fusion",
    implementation="ETR",
    needs=frozenset({"full-logits", "hidden-states", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "texts and q equal an independent loop on two real models, both writing, with a made expert token; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_of_methods_that_look_inside_equal_a_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "on the real pair, without calls the text is the meta model's; a forced call gives its beginning and the "
            "expert's own continuation of it",
            f"{_REAL}::test_etr_hands_the_text_over",
        ),
        Evidence(
            "exact equivalence",
            "texts equal an independent loop on tiny models",
            f"{_SMALL}::test_texts_equal_a_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "loss and gradient are those of a whole model with an extended head, and only E has one",
            f"{_SMALL}::test_the_loss_is_that_of_the_whole_model",
        ),
        Evidence("invariant", "no more hand-overs than `switches`", f"{_SMALL}::test_switches_are_bounded"),
    ),
    unverified="The authors' gain is recalled, and was not reproduced. What expert tokens are worth on the two small "
    "models is in benchmarks/results/etr.json.",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """Who writes, how often the text was handed over, and how many symbols the writer has written."""

    writer: int
    handed: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class ETR:
    """`load` takes E from what `chorus teach` wrote: `experts`, a row for each member but
    `meta`, in their order. `follow` 0: the meta model does not read along."""

    meta: int = 0
    bias: float = 0.0
    switches: int = 4
    follow: int = 0
    experts: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        whole(METHOD.id, 0, meta=self.meta, switches=self.switches, follow=self.follow)
        if not isinstance(self.bias, int | float) or math.isnan(self.bias):
            raise SettingsError(f"etr: bias must be a number, got {self.bias!r}.")

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> Self:
        """With its expert tokens. Raises `MethodError`; `ArtefactMismatch` for those of other members."""
        import torch

        if (folder := the_part(METHOD.id, "experts", artefacts)) is None:
            return self
        manifest, found = load_artefact(folder, method=METHOD.id)
        if manifest.models != tuple(members):
            raise ArtefactMismatch(
                f"The etr artefact {manifest.version} was made for {', '.join(manifest.models)}, but the config has "
                f"{', '.join(members)}. Train anew with `chorus teach`."
            )
        table = tensor(found, "experts", (len(members) - 1, None)).astype(np.float32)
        return replace(self, experts=torch.from_numpy(table))

    def save(self, folder: Path, models: Sequence[str], **about: Any) -> Manifest:
        """Write the artefact. `about`: further fields of its manifest."""
        assert self.experts is not None
        manifest = Manifest(method=METHOD.id, models=tuple(models), **about)
        return save_artefact(folder, manifest, {"experts": self.experts.numpy().astype(np.float32)})

    @property
    def layers(self) -> Mapping[int, Sequence[int]]:
        """The final norm of the meta model."""
        return {self.meta: (-1,)}

    def decide(self, step: Step) -> Decision:
        """The distribution of whoever writes."""
        turn = step.memory if isinstance(step.memory, Turn) else Turn(self.meta)
        if self._listens(turn):
            if self.meta not in step.logits:
                return Ask(frozenset({self.meta}))
            called = self._called(step)
            if called is not None and called != turn.writer:
                turn = Turn(called, turn.handed + 1)
        if turn.writer not in step.logits:
            return Ask(frozenset({turn.writer}))
        return alone(step, turn.writer, replace(turn, written=turn.written + 1))

    def _listens(self, turn: Turn) -> bool:
        """Whether the meta model may hand over here."""
        if turn.handed >= self.switches:
            return False
        if turn.writer == self.meta:
            return True
        return self.follow > 0 and turn.written > 0 and turn.written % self.follow == 0

    def _called(self, step: Step) -> int | None:
        """The expert whose token is likelier than every symbol; None where a symbol is the likeliest."""
        if self.bias == -math.inf:
            return None
        if self.experts is None:
            raise SettingsError("etr: has no expert tokens; name an artefact that `chorus teach` wrote.")
        others = [m for m in range(len(step.weights)) if m != self.meta]
        z = (self.experts @ step.states[self.meta][0].float() + self.bias).tolist()
        heard = [(value, -m) for value, m in zip(z, others, strict=True) if step.weights[m] > 0]
        best, _ = step.alphabet.top(self.meta, step.logits[self.meta], 1)
        ordinary = float(step.alphabet.read(self.meta, step.logits[self.meta], best).max())
        return -max(heard)[1] if heard and max(heard)[0] > ordinary else None


# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """What the frozen meta model makes of an assistant's turn of n tokens: its `states`, shape (n, d), the log of
    Σ exp of its logits, `mass`, and the logit of the token that came, `came`, both (n,). `expert`, (n,), is the row of
    E where the token is an expert's (`came` does not count there), else -1."""

    states: Tensor
    mass: Tensor
    came: Tensor
    expert: Tensor


def loss(experts: Tensor, part: Sequence[Conversation]) -> Tensor:
    """Mean cross-entropy over |V| + K tokens, in nats a token. A conversation holds all it needs of the model."""
    import torch

    states, mass, came, expert = (
        torch.cat([getattr(one, name) for one in part]) for name in ("states", "mass", "came", "expert")
    )
    z = states @ experts.T
    whole_mass = torch.logaddexp(mass, z.logsumexp(-1))
    chosen = torch.where(expert < 0, came, z.gather(1, expert.clamp_min(0)[:, None])[:, 0])
    return (whole_mass - chosen).mean()


def fit(
    start: Tensor,
    conversations: Sequence[Conversation],
    *,
    rate: float = 5e-4,
    decay: float = 1.0,
    epochs: int = 5,
    batch: int = 64,
    warm_up: int = 5,
    seed: int = 0,
) -> tuple[Tensor, list[float]]:
    """Learn E, which begins as `start`, shape (K, d): AdamW, cosine schedule after `warm_up` steps, batches of so many
    conversations (the authors' 16 × 4). Returns E and the loss by step."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    experts = start.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW([experts], lr=rate, weight_decay=decay)
    steps = epochs * math.ceil(len(conversations) / batch)

    def pace(n: int) -> float:
        if n < warm_up:
            return (n + 1) / (warm_up + 1)
        return (1 + math.cos(math.pi * (n - warm_up) / max(1, steps - warm_up))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, pace)
    losses: list[float] = []
    for _ in range(epochs):
        order = torch.randperm(len(conversations), generator=generator)
        for first in range(0, len(order), batch):
            found = loss(experts, [conversations[i] for i in order[first : first + batch].tolist()])
            optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(float(found.detach()))
    return experts.detach(), losses
