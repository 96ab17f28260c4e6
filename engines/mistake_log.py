"""What a model got wrong, position by position, while it read the answers it was to learn: the Mistake Log.

Of every position of an answer it keeps what the model's states were (pooled over layers), which `kept` symbols it held
most likely, and how likely; the error ℓ is then one-hot of what came minus that. What came is always among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.lessons import Reading
from engines.union import Union
from ensembles.networks.copilot import pooled

if TYPE_CHECKING:
    import torch

__all__ = ["Mistakes", "mistakes"]


@dataclass(frozen=True, slots=True, eq=False)
class Mistakes:
    """One answer of n symbols. `prompt`: its symbols, controls left out; `states` (n, D), half precision; `symbols` and
    `expected`, their probabilities, (n, kept + 1); `came` (n,), which of these it was."""

    prompt: torch.Tensor
    states: torch.Tensor
    symbols: torch.Tensor
    expected: torch.Tensor
    came: torch.Tensor

    @property
    def errors(self) -> torch.Tensor:
        """ℓ, shape (n, kept + 1)."""
        import torch

        return torch.nn.functional.one_hot(self.came, self.symbols.shape[1]).float() - self.expected


def mistakes(reading: Reading, union: Union, kept: int) -> list[Mistakes]:
    """The log of each lesson of a reading with all states. `union` is of the model's vocabulary alone."""
    import torch

    came = union.maps[0][reading.labels]
    p = torch.stack([union.project(0, row) for row in reading.logits.detach()])
    states = pooled([layer.detach() for layer in reading.states]).half()
    expected, symbols = p.topk(min(kept + 1, p.shape[1]))
    absent = ~(symbols == came[:, None]).any(-1)
    symbols[absent, -1] = came[absent]
    expected[absent, -1] = p[absent, came[absent]]
    at = (symbols == came[:, None]).int().argmax(-1)
    out, start = [], 0
    for lesson in reading.lessons:
        here = slice(start, start := start + len(lesson.answer))
        prompt = union.maps[0][torch.tensor(lesson.prompt)]
        fields = (states[here], symbols[here], expected[here], at[here])
        out.append(Mistakes(prompt[prompt < union.size], *(field.clone() for field in fields)))
    return out
