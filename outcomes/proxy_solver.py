"""A small language model tries a prompt first: how sure it is tells a router something about how hard the prompt is.

The attempt is greedy and short. Its signals are features with names, as `outcomes.prompt_features` has them: the first
token's distribution, how likely the attempt was to itself, and what kind of answer it is. The model reads in numpy, so
serving needs no torch, but it costs a forward pass of the whole prompt: tenths of a second a query on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outcomes.causal_lm import CausalLm
from outcomes.networks import softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SIGNALS", "ProxySolver"]

SYSTEM = "Answer with the result alone."
SIGNALS = (
    "proxy: entropy",
    "proxy: first choice",
    "proxy: lead",
    "proxy: confidence",
    "proxy: ended",
    "proxy: a number",
    "proxy: a letter",
)
"""Of the first token: entropy (natural log), highest probability, its lead over the second; mean log-probability of the
attempt's tokens; whether it came to an end; whether the answer begins with a digit, or is one letter."""


@dataclass(frozen=True, slots=True, eq=False)
class ProxySolver:
    """`lm` tries a prompt's last `limit` tokens for at most `tokens` tokens."""

    lm: CausalLm
    tokens: int = 4
    limit: int = 128

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The signals of every text, shape (n_texts, len(SIGNALS))."""
        before, after = (self.lm.tokens(part) for part in self.lm.framed(SYSTEM, "{question}"))
        start = self.lm.opening(before)
        rows = [self._attempt([*self.lm.question(text, self.limit), *after], start) for text in texts]
        return np.array(rows).reshape(len(rows), len(SIGNALS))

    def _attempt(
        self, asked: Sequence[int], start: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> list[float]:
        states, past = self.lm.read(asked, start)
        found: list[int] = []
        likely: list[float] = []
        first = self._next(states[-1])
        chances = first
        for _ in range(self.tokens):
            token = int(chances.argmax())
            likely.append(float(np.log(chances[token])))
            if token in self.lm.shape.ends:
                break
            found.append(token)
            if len(found) < self.tokens:
                states, past = self.lm.read([token], past)
                chances = self._next(states[-1])
        second, top = np.partition(first, -2)[-2:]
        answer = self.lm.text(found).strip()
        return [
            float(-(first * np.log(np.maximum(first, 1e-30))).sum()),
            float(top),
            float(top - second),
            float(np.mean(likely)),
            float(len(found) < self.tokens),
            float(answer[:1].isdigit()),
            float(len(answer.rstrip(".)")) == 1 and answer[0].isalpha()),
        ]

    def _next(self, state: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities of the next token."""
        return np.asarray(softmax((state @ self.lm.head.T).astype(np.float64)), dtype=np.float64)
