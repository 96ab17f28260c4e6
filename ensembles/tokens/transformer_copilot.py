"""Transformer Copilot: a second, small network learns what a model gets wrong and corrects its distribution.

"Transformer Copilot: Learning from The Mistake Log in LLM Fine-tuning", Zou et al., 2025, arXiv 2505.16270.

    p̃_i = p̂_i + λ f_i        f_i = Copilot(X̃, h_{≤ i}, f_{< i}), trained towards ℓ_i = one-hot(came) − p̂_i

p̂_i is the Pilot's next-token distribution (`Alphabet.project`), λ `strength`, f_i the error that the Copilot
(`ensembles/networks/copilot.py`) foresees for the `kept` likeliest symbols; what p̃ has below 0 is cut off and the rest
scaled to 1. X̃ are the prompt's embeddings and h_i the Pilot's states, pooled over all layers. Pilot and Copilot are
trained together by `python -m engines.train_copilot`, which logs the Pilot's mistakes while it learns.

*Needs* the Pilot's full logits and hidden states, and a fitted artefact. *Returns* q over all symbols.

*Differs from the paper.* Errors are foreseen for the likeliest symbols, not for all; the Copilot is smaller than its
Pilot, so that it cannot start from the Pilot's weights, and speaks in the Pilot's embeddings; h is pooled by the mean
of scaled states. Half of its training steps read its own corrections for ℓ_{< i}, as it does when it serves. With
further members the Pilot's part of their mean is corrected.

*Laws.* λ = 0 is the Pilot (with further members, their mean); with f = ℓ over all symbols and λ = 1, p̃ is the one-hot
target; an untrained Copilot corrects nothing; positions fed one by one give what they give at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensembles.networks.attention import unit
from ensembles.networks.copilot import Copilot, Past, pooled
from ensembles.options import the_part, whole
from ensembles.tokens.base import Ask, Decision, Mixture, Opening, Step, Tables
from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHOD", "Fitted", "TransformerCopilot", "corrected"]

_SMALL = "tests/ensembles/tokens/test_transformer_copilot.py"
_REAL = "tests/engines/test_train_copilot.py"

METHOD = Method(
    id="transformer-copilot",
    title="Transformer Copilot: correct a model by what it got wrong while it learnt",
    year=2025,
    paper="arXiv:2505.16270",
    taxonomy="b1",
    contract="fusion",
    implementation="TransformerCopilot",
    needs=frozenset({"full-logits", "hidden-states", "artefact"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "with the shipped Copilot, texts equal an independent loop on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_of_methods_that_look_inside_equal_a_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "the errors that were made, with λ = 1, give the one-hot target",
            f"{_SMALL}::test_the_true_error_gives_the_target",
        ),
        Evidence(
            "exact equivalence",
            "with λ = 0 a served text is the Pilot's, byte for byte",
            f"{_REAL}::test_a_served_copilot",
        ),
        Evidence(
            "invariant",
            "what a Copilot learns foresees errors on held-out text better than the mean error does",
            f"{_REAL}::test_it_beats_the_mean_error",
        ),
    ),
    unverified="The wiring for decoder-only models and λ are recalled, the formulas are from summaries; the paper's "
    "scores are not reproduced. What it brings to SmolLM2 is in benchmarks/results/inside.md.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was learnt: the network, for how many symbols it foresees errors, and for which Pilot: of how many layers,
    and which weights (`Tables.digest`)."""

    copilot: Copilot
    kept: int
    depth: int
    pilot: str

    @classmethod
    def load(cls, folder: Path) -> Fitted:
        """From an artefact. Raises `MethodError`."""
        import torch

        manifest, found = load_artefact(folder, method=METHOD.id)
        about = manifest.parameters
        numbers = [about.get(name) for name in ("kept", "depth", "layers")]
        if not all(isinstance(value, int) and 0 < value < 1 << 16 for value in numbers):
            raise MethodError(f"{folder} is not an artefact of {METHOD.id}: it says {numbers}.")
        size, width = tensor(found, "state", (None, None)).shape
        empty = Copilot.new(width, layers=about["layers"], size=size).weights
        weights = {name: torch.tensor(tensor(found, name, tuple(x.shape))) for name, x in empty.items()}
        return cls(Copilot(weights), about["kept"], about["depth"], str(about.get("pilot")))

    def save(self, folder: Path, models: Sequence[str], **about: Any) -> Manifest:
        """Write the artefact. `about`: further fields of its manifest."""
        numbers = {"kept": self.kept, "depth": self.depth, "layers": self.copilot.layers}
        manifest = Manifest(
            method=METHOD.id, models=tuple(models), parameters={**numbers, "pilot": self.pilot}, **about
        )
        tensors = {name: value.detach().numpy() for name, value in self.copilot.weights.items()}
        return save_artefact(folder, manifest, tensors)


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """Of the text so far: Σ_v f_{i−1}(v) e_v, shape (D,), what the Copilot attends to, and i."""

    said: Tensor
    past: Past
    length: int


@dataclass(frozen=True, eq=False)
class TransformerCopilot:
    """`strength` λ; `pilot`, the member that is corrected. `fitted`, what was learnt, is set by `load` (without it
    nothing is corrected), `tables` by `bind`, `prompt` (X̃) by `open`."""

    strength: float = 0.3
    pilot: int = 0
    fitted: Fitted | None = None
    tables: Tables | None = None
    prompt: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.strength, int | float) or not 0 <= self.strength <= 1:
            raise SettingsError(f"{METHOD.id}: strength must be between 0 and 1, got {self.strength!r}.")
        whole(METHOD.id, 0, pilot=self.pilot)

    @property
    def layers(self) -> Mapping[int, Sequence[int]]:
        """All of the Pilot's."""
        return {} if self.fitted is None else {self.pilot: (*range(1, self.fitted.depth), -1)}

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> TransformerCopilot:
        """With the `copilot` among the artefacts, where there is one. Raises `MethodError`."""
        folder = the_part(METHOD.id, "copilot", artefacts)
        return self if folder is None else replace(self, fitted=Fitted.load(folder))

    def bind(self, tables: Tables) -> TransformerCopilot:
        """With the Pilot's embeddings. Raises `ArtefactMismatch` where it is not the one that was trained."""
        if self.pilot >= tables.members:
            raise SettingsError(f"{METHOD.id}: pilot {self.pilot} is not among the {tables.members} members.")
        if self.fitted is not None and (found := tables.digest(self.pilot)) != self.fitted.pilot:
            raise ArtefactMismatch(
                f"The Copilot was trained for a model with weights {self.fitted.pilot}, and the member here has "
                f"{found}. Configure the Pilot that was trained with it, or train anew."
            )
        return replace(self, tables=tables)

    def open(self, opening: Opening) -> TransformerCopilot:
        """With X̃ of this request's prompt, shape (n_prompt, D)."""
        return replace(self, prompt=self._embedded(opening.prompts[self.pilot], "input"))

    def decide(self, step: Step) -> Decision:
        """The q of the step, or the members still wanted: the Pilot and all that have a weight."""
        heard = {self.pilot} | {m for m, w in enumerate(step.weights) if w > 0}
        if missing := heard - step.logits.keys():
            return Ask(frozenset(missing))
        share, memory = step.weights[self.pilot], None
        p = step.alphabet.project(self.pilot, step.logits[self.pilot])
        q = share * p
        if self.fitted is not None and self.strength * share > 0:
            symbols, f, memory = self._foreseen(self.fitted, step, p)
            q = share * corrected(p, symbols, f, self.strength)
        for m in sorted(heard - {self.pilot}):
            q = q + step.weights[m] * step.alphabet.project(m, step.logits[m])
        return Mixture(q, memory=memory)

    def _foreseen(self, fitted: Fitted, step: Step, p: Tensor) -> tuple[Tensor, Tensor, _Memory]:
        """The likeliest symbols, f for them, and what the next step has to know."""
        assert self.prompt is not None
        symbols = p.topk(min(fitted.kept, p.shape[0])).indices
        h = pooled(step.states[self.pilot].unbind(0))
        if isinstance(before := step.memory, _Memory):
            said, past, length, prompt = before.said, before.past, before.length, self.prompt[:0]
        else:
            said, past, length, prompt = h.new_zeros(h.shape), None, 0, self.prompt
        direction, past = fitted.copilot.foresee(
            said[None, None], prompt[None], h[None, None], past=past, first=length
        )
        e = self._embedded(symbols, "output")
        f = e @ direction[0, 0]
        return symbols, f, _Memory(f @ e, past, length + 1)

    def _embedded(self, symbols: Tensor, side: Literal["input", "output"]) -> Tensor:
        assert self.tables is not None
        return unit(self.tables.embeddings(self.pilot, symbols, side))


def corrected(p: Tensor, symbols: Tensor, f: Tensor, strength: float) -> Tensor:
    """p̃ = p̂ + λ f, as a distribution: shape (|U|,), f for `symbols`."""
    q = p.index_add(0, symbols, strength * f).clamp_min(0.0)
    return q / q.sum()
