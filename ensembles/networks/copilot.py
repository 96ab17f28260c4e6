"""The Copilot of `transformer_copilot`: a small decoder that foresees the errors of a large one, the Pilot.

    x_i = W_e Σ_v f_{i−1}(v) e_v          what it last said, or while it learns the error that was made; 0 at first
    self-attention over x_{≤ i}, then cross-attention over W_x X̃ and W_h h_{≤ i}, and so on in turn
    f_i(v) = e_v · W_o x_i / D            the error foreseen for symbol v

X̃ are the prompt's input embeddings, h_i the Pilot's states at position i, each layer's scaled to unit mean square
and then averaged, e_v the Pilot's output embeddings, so scaled as well: since these come with the Pilot, a Copilot is
a megabyte or less. Attention falls off with distance, at a rate of each head's own (ALiBi: Press et al., 2022), the
prompt lying before the answer; so texts may be longer than any it learnt from.

Tensors come in as arguments, so that importing this loads no torch; the weights may be such as learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ensembles.networks.attention import AHEAD, attend, drawn, unit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Copilot", "Past", "pooled"]

SLOPES = (2.0, 0.5, 0.125, 0.0)
"""How fast each head's attention falls off: the first sees the present, the last everything alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What later positions attend to, by layer: keys and values, (n, n_keys, d) each, and where they stand, (n,
    n_keys)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Copilot:
    """`weights` by name, float32. D is the Pilot's width, d the Copilot's."""

    weights: Mapping[str, Tensor]

    @classmethod
    def new(cls, width: int, *, layers: int = 2, size: int = 64, seed: int = 0) -> Copilot:
        """One that has learnt nothing and foresees no error: W_o = 0."""
        import torch

        chance = torch.Generator().manual_seed(seed)

        random = partial(drawn, chance)
        weights = {name: random(size, width) for name in ("error", "prompt", "state")}
        weights["out"] = torch.zeros(width, size)
        for i in range(layers):
            weights |= {f"{i}.{part}": random(size, size) for part in ("query", "key", "value", "mixed")}
            weights |= {f"{i}.up": random(4 * size, size), f"{i}.down": random(size, 4 * size)}
        return cls(weights)

    @property
    def width(self) -> int:
        """D: what the Pilot's states and embeddings must have."""
        return int(self.weights["out"].shape[0])

    @property
    def layers(self) -> int:
        """Number of layers, by turns of self- and cross-attention."""
        return sum(name.endswith(".query") for name in self.weights)

    def foresee(
        self,
        before: Tensor,
        prompt: Tensor,
        states: Tensor,
        *,
        starts: Tensor | None = None,
        past: Past | None = None,
        first: int = 0,
    ) -> tuple[Tensor, Past]:
        """W_o x_i / D at positions `first`, `first` + 1, …, shape (n, n_positions, D), and the past of later ones.

        `before`: Σ_v f_{i−1}(v) e_v, and `states`: h_i, both (n, n_positions, D); `prompt`: X̃, (n, n_prompt, D), empty
        where `past` has it, padded on the left, row r beginning at `starts[r]`."""
        import torch

        w = self.weights
        n, here = before.shape[:2]
        at = torch.arange(first, first + here).expand(n, here)
        asked = torch.arange(prompt.shape[1])
        asked_at = (asked - prompt.shape[1]).expand(n, -1)
        if starts is not None:
            asked_at = asked_at.masked_fill(asked < starts[:, None], AHEAD)
        memory = unit(torch.cat([prompt @ w["prompt"].T, states @ w["state"].T], 1))
        memory_at = torch.cat([asked_at, at], 1)
        x = before @ w["error"].T
        keys, values, positions = [], [], []
        for i in range(self.layers):
            y = unit(x)
            source, source_at = (y, at) if i % 2 == 0 else (memory, memory_at)
            k, v, k_at = source @ w[f"{i}.key"].T, source @ w[f"{i}.value"].T, source_at
            if past is not None:
                k, v = torch.cat([past.keys[i], k], 1), torch.cat([past.values[i], v], 1)
                k_at = torch.cat([past.positions[i], k_at], 1)
            keys.append(k)
            values.append(v)
            positions.append(k_at)
            x = (
                x
                + attend(y @ w[f"{i}.query"].T, k, v, at[..., None] - k_at[:, None], SLOPES)
                @ w[f"{i}.mixed"].T
            )
            x = x + torch.nn.functional.silu(unit(x) @ w[f"{i}.up"].T) @ w[f"{i}.down"].T
        return unit(x) @ w["out"].T / self.width, Past(tuple(keys), tuple(values), tuple(positions))


def pooled(layers: Sequence[Tensor]) -> Tensor:
    """h: the mean over layers of the states, each scaled to unit mean square; same shape."""
    import torch

    stacked: Tensor = torch.stack([unit(state.float()) for state in layers])
    return stacked.mean(0)
