"""PackLLM: weigh the members by how well they, or their mixture, predict the prompt.

"Pack of LLMs: Model Fusion at Test-Time via Perplexity Optimization", Mavromatis et al., 2024, arXiv
2404.11531.

    z = Σ_m λ_m z_m over the reference vocabulary      q = softmax(z)
    sim:  λ = softmax(−Loss_m / τ)
    opt:  in ascending order of loss, cur ← λ* cur + (1 − λ*) z_m,  λ* = argmin over {0, .05, …, 1} of NLL

The reference is the vocabulary of the member with the lowest loss; z_m there is the logit of the same token,
or of a near one. Loss_m is the member's mean negative log-likelihood of the prompt; NLL is that of the
prompt under the mixture. λ is computed once a request, in `prepare`, and kept.

*Needs* full logits at the last `reach` tokens of the prompt, and of the members with λ > 0 while decoding.
*Returns* q over the reference vocabulary.

*Differs from the paper.* Members read the prompt in their own tokens, where the authors translate token by
token into the nearest string (MinED), which gives helpers odd input. So a loss is per byte, times the
reference's bytes a token; losses are taken on the text that the members' differing templates have in common,
its last `reach` tokens; and NLL is taken where members stand at the same byte before a reference token. A
reference token that a member lacks is read by the first token with which it would write it (the authors: the
token of least edit distance). Logits are mixed as they are, like the authors', so a member with larger logits
counts more.

*Laws.* sim has its closed form; opt's NLL is at most that of the best member (λ* = 1 is on the grid); one
member with all weight, and copies of one model, give that model; a prompt without common text leaves the
weights as configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ensembles.options import one_of, whole
from ensembles.tokens.base import Alphabet, Ask, Decision, Mixture, Prompt, PromptRow, Step, Tables
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHOD", "PackLLM"]

Mode = Literal["sim", "opt"]

_SMALL = "tests/ensembles/tokens/test_packllm.py"

METHOD = Method(
    id="packllm",
    title="PackLLM: test-time fusion by prompt perplexity",
    year=2024,
    paper="arXiv:2404.11531",
    taxonomy="b1",
    contract="fusion",
    implementation="PackLLM",
    needs=frozenset({"full-logits", "prompt-logits"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the similarity weights equal their closed form",
            f"{_SMALL}::test_sim_weights_are_the_closed_form",
        ),
        Evidence(
            "invariant",
            "the optimised mixture predicts the prompt at least as well as the best member",
            f"{_SMALL}::test_the_optimised_mixture_is_no_worse_than_the_best_member",
        ),
        Evidence(
            "exact equivalence",
            "weights, texts and q equal an independent computation with transformers on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_equal_a_plain_loop",
        ),
    ),
    unverified="The paper's scores are recalled and not reproduced. The authors' map by edit distance is replaced, "
    "so the weights differ from theirs on the same prompt.",
)

GRID = tuple(i / 20 for i in range(21))
NEVER = -1e4
"""A logit for what a member cannot write: finite, so that a weight of 0 leaves it out."""


@dataclass(frozen=True, slots=True)
class PackLLM:
    """`mode`, τ = `temperature` of "sim", and `reach`, the prompt tokens looked at. `reference` is the member
    whose vocabulary is written in; None, and before `prepare`: the one with the largest weight. `weights` are
    set by `prepare`."""

    mode: Mode = "opt"
    temperature: float = 1.0
    reach: int = 48
    reference: int | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        one_of(METHOD.id, Mode, mode=self.mode)
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise SettingsError(f"packllm: temperature must be positive, got {self.temperature!r}.")
        whole(METHOD.id, 1, 512, reach=self.reach)
        if self.reference is not None:
            whole(METHOD.id, 0, reference=self.reference)

    def bind(self, tables: Tables) -> PackLLM:
        """Have it looked up once how each member begins the tokens of every other."""
        for reference in range(tables.members):
            symbols = tables.alphabet.shared(frozenset({reference}))
            for m in range(tables.members):
                tables.alphabet.begin(m, symbols)
        return self

    def prepare(self, prompt: Prompt) -> PackLLM:
        """The fusion with this prompt's reference and λ."""
        if not all(prompt.rows):
            return self
        per_byte = [_loss(prompt.alphabet, m, rows) for m, rows in enumerate(prompt.rows)]
        reference = min(range(len(per_byte)), key=per_byte.__getitem__)
        if self.reference is not None:
            reference = self.reference
        own = prompt.rows[reference]
        token = sum(row.size for row in own) / len(own)
        weights = (
            _similar([loss * token for loss in per_byte], self.temperature)
            if self.mode == "sim"
            else _optimal(prompt, reference)
        )
        return PackLLM(self.mode, self.temperature, self.reach, reference, weights)

    def decide(self, step: Step) -> Decision:
        """The q of the step, or the members still wanted: all with λ > 0."""
        weights = self.weights or step.weights
        heard = [m for m, w in enumerate(weights) if w > 0]
        if missing := frozenset(heard) - step.logits.keys():
            return Ask(missing)
        reference = self.reference if self.reference is not None else weights.index(max(weights))
        symbols = step.alphabet.shared(frozenset({reference}))
        z = sum(weights[m] * _mapped(step.alphabet, m, step.logits[m], symbols) for m in heard)
        return Mixture(z.softmax(-1), symbols)  # type: ignore[union-attr]  # a sum over tensors, not 0


def _mapped(alphabet: Alphabet, member: int, logits: Tensor, symbols: Tensor) -> Tensor:
    """z_m on the reference's symbols."""
    return alphabet.read(member, logits, alphabet.begin(member, symbols)).clamp_min(NEVER)


def _loss(alphabet: Alphabet, member: int, rows: tuple[PromptRow, ...]) -> float:
    """Mean negative log-likelihood a byte of what came, in the member's own tokens."""
    import torch

    nll = 0.0
    for row in rows:
        z = alphabet.read(member, row.logits, torch.tensor([row.symbol]))
        nll += alphabet.log_mass(member, row.logits) - float(z)
    return nll / sum(row.size for row in rows)


def _similar(losses: list[float], temperature: float) -> tuple[float, ...]:
    import torch

    return tuple((-torch.tensor(losses, dtype=torch.float64) / temperature).softmax(-1).tolist())


def _optimal(prompt: Prompt, reference: int) -> tuple[float, ...] | None:
    """λ by the greedy search over the grid; None where the members never stand at one point."""
    import torch

    alphabet, members = prompt.alphabet, range(len(prompt.rows))
    at = [{row.start: row for row in rows} for rows in prompt.rows]
    points = [row for row in prompt.rows[reference] if all(row.start in rows for rows in at)]
    if not points:
        return None
    symbols = alphabet.shared(frozenset({reference}))
    label = torch.searchsorted(symbols, torch.tensor([row.symbol for row in points]))
    z = [
        torch.stack([_mapped(alphabet, m, at[m][row.start].logits, symbols) for row in points])
        for m in members
    ]

    def nll(z: Tensor) -> float:
        return float((z.logsumexp(-1) - z.gather(-1, label[:, None])[:, 0]).mean())

    best, *others = sorted(members, key=lambda m: nll(z[m]))
    current, weights = z[best], {best: 1.0}
    for m in others:
        share = min(GRID, key=lambda share: nll(share * current + (1 - share) * z[m]))  # the first of equals
        current = share * current + (1 - share) * z[m]
        weights = {o: w * share for o, w in weights.items()} | {m: 1 - share}
    return tuple(weights[m] for m in members)
