"""The latent mixture of `mot`: how a model's hidden states take in what others think at the same place of a text.

    u_m = P_m unit(h_m)                                      every active model's states, d_z wide
    h  ←  h + |h| · R · CrossAttn(W_q u, W_k u_a, W_v u_a)    the writer's, over all active models a, itself included

at Q points of the writer's depth; |h| is the state's own root mean square, so that R needs no knowledge of a model's
scale, and R = 0 at first: nothing is mixed in. What is seen is what lies before: of the writer's own tokens those up
to the present one, of another model's those whose last byte is not behind the present token's last byte. Attention
falls off with the distance in bytes.

The router is an MLP over a frozen encoder's vector of the prompt. Tensors come in as arguments, so that importing this
loads no torch; the weights may be such as learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ensembles.networks.attention import attend, drawn, unit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Latents", "Mixture"]

SLOPES = (1.0, 0.25, 0.0625, 0.0)
"""How fast each head's attention falls off, a byte; the last sees everything alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """`weights` by name, float32: P.m.q, and of the writer m R.m.q, query.m.q, key.m.q, value.m.q; router.in,
    router.out."""

    weights: Mapping[str, Tensor]
    points: int

    @classmethod
    def new(
        cls,
        widths: Sequence[int],
        embedding: int,
        *,
        points: int = 3,
        size: int = 64,
        hidden: int = 64,
        seed: int = 0,
    ) -> Mixture:
        """One that has learnt nothing, for models of these widths and an encoder's vectors of `embedding` numbers."""
        import torch

        chance = torch.Generator().manual_seed(seed)

        random = partial(drawn, chance)
        weights = {"router.in": random(hidden, embedding), "router.out": torch.zeros(len(widths), hidden)}
        for m, width in enumerate(widths):
            for q in range(points):
                weights[f"P.{m}.{q}"] = random(size, width)
                weights[f"R.{m}.{q}"] = torch.zeros(width, size)
                weights |= {f"{part}.{m}.{q}": random(size, size) for part in ("query", "key", "value")}
        return cls(weights, points)

    @property
    def members(self) -> int:
        """Number of models."""
        return int(self.weights["router.out"].shape[0])

    def scores(self, vectors: Tensor) -> Tensor:
        """Log-probability that each model is the one to write: vectors (n, embedding) → (n, members)."""
        import torch

        inner = torch.nn.functional.silu(vectors @ self.weights["router.in"].T)
        return (inner @ self.weights["router.out"].T).log_softmax(-1)

    def thought(self, member: int, point: int, states: Tensor) -> Tensor:
        """U of a model's states, shape (n, n_tokens, d_m) → (n, n_tokens, d_z)."""
        return unit(states.float()) @ self.weights[f"P.{member}.{point}"].T

    def mixed_in(
        self,
        writer: int,
        point: int,
        states: Tensor,
        ends: Tensor,
        own: tuple[Tensor, Tensor],
        others: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """What is to be added to the writer's `states`, (n, n_tokens, d), whose tokens end at bytes `ends`, (n,
        n_tokens).

        `own`: u of all its tokens up to and including these, which come last, and where they end; `others`: u of the
        other active models, and where those end (`AHEAD` for padding)."""
        import torch

        w = self.weights
        known, known_ends = own
        here, count = ends.shape[1], known_ends.shape[1]
        seen = torch.ones(here, count, dtype=torch.bool).tril(count - here)
        apart = (ends[..., None] - known_ends[:, None]).masked_fill(~seen, -1)
        keys = torch.cat([known, *(u for u, _ in others)], 1)
        distance = torch.cat([apart, *(ends[..., None] - at[:, None] for _, at in others)], 2)
        mixed = attend(
            known[:, count - here :] @ w[f"query.{writer}.{point}"].T,
            keys @ w[f"key.{writer}.{point}"].T,
            keys @ w[f"value.{writer}.{point}"].T,
            distance,
            SLOPES,
        )
        scale = states.float().square().mean(-1, keepdim=True).sqrt()
        return scale * (mixed @ w[f"R.{writer}.{point}"].T)


@dataclass(slots=True, eq=False)
class Latents:
    """Of one text: what its active models thought so far, at every point. `writer` is the one that takes it in."""

    mixture: Mixture
    writer: int
    active: frozenset[int]
    kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By model and point: u, (n, n_tokens, d_z), and where the tokens end, (n, n_tokens)."""

    def visit(self, member: int, point: int, first: int, states: Tensor, ends: Tensor) -> Tensor | None:
        """A model's states, (n, n_tokens, d), of its tokens `first`, `first` + 1, …, which end at bytes `ends`. Returns
        what is to be added to them where it is the writer's.

        The others must have been here with all tokens that end no later. Tokens that come again replace what was kept
        of them and of later ones."""
        import torch

        u = self.mixture.thought(member, point, states)
        if (before := self.kept.get((member, point))) is not None:
            u = torch.cat([before[0][:, :first], u], 1)
            known = torch.cat([before[1][:, :first], ends], 1)
        else:
            known = ends
        self.kept[member, point] = (u, known)
        if member != self.writer:
            return None
        others = [self.kept[m, point] for m in sorted(self.active - {member})]
        return self.mixture.mixed_in(member, point, states, ends, (u, known), others)
