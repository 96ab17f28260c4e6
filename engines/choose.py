"""Choosing a symbol from a fused distribution: the most likely one, or a draw with temperature from the most
likely ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.generation import Sampling

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Chooser"]

NUCLEUS = 4096
"""Symbols looked at before a whole sort is paid for; the nucleus of a trained model is far smaller."""


class Chooser:
    """Draws for one request. Temperature 0 takes the first of the most likely symbols; the same seed, the
    same draws. Drawn from are symbols of at least `min_p` times the largest probability, of these the `top_k` most
    likely (0: all), of these the fewest that have `top_p` of what is left."""

    def __init__(
        self, temperature: float, top_p: float, seed: int | None, top_k: int = 0, min_p: float = 0.0
    ) -> None:
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._top_k, self._min_p = top_k, min_p
        self._generator: Generator | None = None

    @classmethod
    def of(cls, asked: Sampling) -> Chooser:
        """As a request wants it."""
        few = {key: asked.extra[key] for key in ("top_k", "min_p") if key in asked.extra}
        return cls(asked.temperature, asked.top_p, asked.seed, **few)

    @property
    def greedy(self) -> bool:
        """Whether only the most likely symbol can come."""
        return self._temperature == 0

    def choose(self, q: Tensor, allowed: Tensor) -> int:
        """A position of `q`, shape (n,), among the `allowed` ones, bool of the same shape. q is not
        changed."""
        import torch

        if self.greedy and bool(allowed[best := int(q.argmax())]):
            return best
        q = q.masked_fill(~allowed, 0.0)
        if self.greedy:
            return int(q.argmax())
        p = self._few(torch.softmax(q.log() / self._temperature, dim=-1))
        if self._top_p >= 1:
            return self.draw(p)
        values, symbols = self._nucleus(p)
        return int(symbols[self.draw(values)])

    def distribution(self, q: Tensor, allowed: Tensor) -> Tensor:
        """The probabilities with which `choose` takes each position, shape (n,), sum 1; all on one position
        where the choice is greedy."""
        import torch

        if self.greedy:
            p = torch.zeros_like(q)
            p[self.choose(q, allowed)] = 1.0
            return p
        p = self._few(torch.softmax(q.masked_fill(~allowed, 0.0).log() / self._temperature, dim=-1))
        if self._top_p >= 1:
            return p
        values, symbols = self._nucleus(p)
        return torch.zeros_like(p).index_copy_(0, symbols, values / values.sum())

    def draw(self, p: Tensor) -> int:
        """A position of `p`, shape (n,), ≥ 0 and not all 0, in proportion to it."""
        import torch

        return int(torch.multinomial(p, 1, generator=self._random(p)))

    def uniform(self, like: Tensor) -> float:
        """A number in [0, 1), from the device of `like`."""
        import torch

        return float(torch.rand((), generator=self._random(like), device=like.device))

    def _random(self, like: Tensor) -> Generator:
        import torch

        if self._generator is None:
            self._generator = torch.Generator(device=like.device)
            if self._seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._seed & (2**63 - 1))
        return self._generator

    def _few(self, p: Tensor) -> Tensor:
        """The p without what is less likely than `min_p` and `top_k` allow, sum 1. Of equally likely ones all stay."""
        least = self._min_p * float(p.max())
        if 0 < self._top_k < p.shape[0]:
            least = max(least, float(p.topk(self._top_k).values[-1]))
        if least <= 0:
            return p
        p = p.masked_fill(p < least, 0.0)
        return p / p.sum()

    def _nucleus(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely positions and their p, best first, 0 behind the nucleus."""
        values, symbols = p.topk(min(NUCLEUS, p.shape[0]))
        if float(values.sum()) < self._top_p:
            values, symbols = p.sort(descending=True)
        before = values.cumsum(-1) - values
        return values.masked_fill(before >= self._top_p, 0.0), symbols
