"""What a request wants of a distribution beside temperature: penalties on what was written, and biases.

    z ← z + bias[u]                                    where there is one
    z ← z / r where z > 0, z · r elsewhere             for u in the prompt or the text      (repetition penalty r)
    z ← z − presence · [n(u) > 0] − frequency · n(u)   n(u): how often u stands in the text

in the order of vLLM's sampler. u is whatever the answer is chosen from: a member's own token where it writes alone, a
symbol of the union of vocabularies where several decide together; and z its logit, or the natural logarithm of its
fused probability. Only the repetition penalty tells the two apart, for it depends on where zero lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Penalties"]


@dataclass(frozen=True, slots=True)
class Penalties:
    """Of one request: `bias` by position, `prompt` the positions that stand in it."""

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] | None = None
    prompt: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls, options: Mapping[str, Any], prompt: Iterable[int] = (), place: Callable[[int], int] = int
    ) -> Penalties | None:
        """What `options`, checked by `sampler_options`, ask for; None where that is nothing. `place` says where the
        token of an id stands, for biases and the `prompt`, which are told in ids."""
        repetition = options.get("repetition_penalty", 1.0)
        penalties = cls(
            options.get("presence_penalty", 0.0),
            options.get("frequency_penalty", 0.0),
            repetition,
            {place(i): bias for i, bias in options.get("logit_bias", {}).items()},
            frozenset(map(place, prompt)) if repetition != 1 else frozenset(),
        )
        return None if penalties == cls(bias={}) else penalties

    def apply(self, z: Tensor, written: Mapping[int, int], positions: Tensor | None = None) -> Tensor:
        """The z after it, shape (n,), float32; `written` is n(u). z[i] belongs to `positions[i]`, without them to i."""
        import torch

        bias = self.bias or {}
        touched = sorted(written.keys() | bias.keys() | self.prompt)
        at = touched
        if positions is not None:
            where = {u: i for i, u in enumerate(positions.tolist())}
            touched = [u for u in touched if u in where]
            at = [where[u] for u in touched]
        z = z.float()
        if not touched:
            return z
        index = torch.tensor(at, device=z.device)
        new = z[index] + z.new_tensor([bias.get(u, 0.0) for u in touched])
        seen = z.new_tensor([u in self.prompt or written.get(u, 0) > 0 for u in touched]).bool()
        new = torch.where(seen, torch.where(new > 0, new / self.repetition, new * self.repetition), new)
        counts = z.new_tensor([float(written.get(u, 0)) for u in touched])
        new -= self.frequency * counts + self.presence * (counts > 0)
        return z.index_copy(0, index, new)
