"""Choosing a symbol from a fused distribution: the most likely one, or a draw with temperature and
nucleus."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Chooser"]

NUCLEUS = 4096
"""Symbols looked at before a whole sort is paid for; the nucleus of a trained model is far smaller."""


class Chooser:
    """Draws for one request. Temperature 0 takes the first of the most likely symbols; the same seed, the
    same draws."""

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._generator: Generator | None = None

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
        if self._generator is None:
            self._generator = torch.Generator(device=q.device)
            if self._seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._seed & (2**63 - 1))
        p = torch.softmax(q.log() / self._temperature, dim=-1)
        if self._top_p >= 1:
            return int(torch.multinomial(p, 1, generator=self._generator))
        values, symbols = p.topk(min(NUCLEUS, p.shape[0]))
        if float(values.sum()) < self._top_p:
            values, symbols = p.sort(descending=True)
        before = values.cumsum(-1) - values
        values = values.masked_fill(before >= self._top_p, 0.0)
        return int(symbols[torch.multinomial(values, 1, generator=self._generator)])
