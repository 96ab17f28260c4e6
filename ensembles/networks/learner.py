"""Steps of training for tensors by name: AdamW, a warm-up, a linear fall, as all fine-tuning here does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from outcomes.fine_tuning import FineTuning

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Learner"]


class Learner:
    """Lets `learnt` learn, at `rate`, in so many `steps`."""

    def __init__(self, learnt: Mapping[str, Tensor], rate: float, steps: int, *, seed: int = 0) -> None:
        import torch

        self.losses: list[float] = []
        self._learnt, self._rate, self._steps = dict(learnt), rate, steps
        for value in self._learnt.values():
            value.requires_grad_()
        self._optimiser = torch.optim.AdamW(list(self._learnt.values()), lr=rate, weight_decay=0.0)
        self._tuning = FineTuning(seed=seed)

    def step(self, loss: Callable[[], Tensor]) -> float:
        """One step down `loss`; returns it."""
        taken = len(self.losses)
        self.losses.append(
            self._tuning.learn(loss, self._learnt, self._optimiser, (self._rate,), taken, self._steps)
        )
        return self.losses[-1]
