"""Process rewards: how good the beginning of an answer is, in [0, 1].

Methods that let something else than their members judge (ensemble-hub, le-mcts) hold a `Reward`. It is asked aside, in
a thread beside the step loop. A trained one is `outcomes.process_reward`; in tests and benchmarks a grader that knows
the right answer stands in its place."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ensembles.spans.base import Work, aside
from protocol.errors import MethodError, SettingsError

__all__ = ["Panel", "Reward", "load_panel", "rewards"]


class Reward(Protocol):
    """Pure, and safe to call from another thread."""

    def __call__(self, question: str, answers: Sequence[str]) -> Sequence[float]:
        """How likely each answer, the beginning of one or a whole one, is to be right in the end; in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Several rewards as one: their mean by weight. `parts`: weight, ≥ 0 and not all 0, and reward."""

    parts: tuple[tuple[float, Reward], ...]

    def __call__(self, question: str, answers: Sequence[str]) -> list[float]:
        """Raises `MethodError` for a part that gives something else than a number in [0, 1] an answer."""
        total, found = sum(weight for weight, _ in self.parts), [0.0] * len(answers)
        for weight, part in self.parts:
            values = [float(value) for value in part(question, answers)]
            if len(values) != len(answers) or not all(0 <= value <= 1 for value in values):
                raise MethodError(f"A process reward gave {values!r} for {len(answers)} answers.")
            found = [sum_ + weight / total * value for sum_, value in zip(found, values, strict=True)]
        return found


def load_panel(method: str, weights: Mapping[str, float], artefacts: Mapping[str, Path]) -> Panel:
    """The rewards named in `weights`, from the artefacts of that name. Raises `ChorusError`."""
    from outcomes.process_reward import ProcessReward

    missing = [name for name in weights if name not in artefacts]
    if missing or not weights:
        name = missing[0] if missing else "reward"
        raise SettingsError(
            f"{method} needs artefacts: {{{name}: FOLDER}}, which `chorus spans reward` writes; it has "
            f"{', '.join(artefacts) or 'none'}."
        )
    return Panel(tuple((weight, ProcessReward.load(artefacts[name])) for name, weight in weights.items()))


def rewards(
    reward: Reward | None, question: str, answers: Sequence[bytes]
) -> Generator[Work, Any, Sequence[float]]:
    """What `reward` says of each answer, asked aside; without one all are equally good."""
    if reward is None:
        return [1.0] * len(answers)
    return (yield from aside(partial(reward, question, [text.decode(errors="replace") for text in answers])))
