"""A trained process reward: a small encoder that reads a question and the beginning of an answer, and says how likely
it is to be right in the end.

    r(q, s_1 … s_i) = σ(w · pool(encoder(q [SEP] s_1 [SEP] … s_i)) + b)

The head, and as many of the encoder's upper layers as are asked for, are trained on labels by rollouts
(`outcomes.process_labels`). The artefact keeps what training changed and names the encoder it started from by its
digest, so that a head alone is a few kilobytes. It is served in numpy (docs/decisions/0009)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, load_artefact, save_artefact
from outcomes.encoder import Encoder, EncoderShape, TrainedEncoder, starting_encoder
from outcomes.encoder_losses import multi_label
from outcomes.encoder_training import EncoderTraining
from outcomes.process_labels import LabelledStep, digest
from outcomes.table import split_mask
from protocol.errors import ArtefactMismatch, MethodError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["ProcessReward", "RewardTraining", "auc", "card", "shown", "train_reward"]

KIND = "process-reward"
HELD_OUT = 0.3
"""The share of questions that training does not see, by a hash of their text: the ones that routers are judged on."""
MARK = " [SEP] "


def shown(question: str, answer: str) -> str:
    """What the encoder reads. A whole line ends with a mark, so that a step that is complete looks unlike an answer
    that is."""
    lines = [line.strip() for line in answer.split("\n")]
    kept = [line for line in lines[:-1] if line] + lines[-1:]
    return question.strip() + MARK + MARK.join(kept)


@dataclass(frozen=True, eq=False)
class ProcessReward:
    """A reward (`ensembles.rewards.Reward`): pure, and safe in any thread. `recipe`: how it was trained."""

    trained: TrainedEncoder
    recipe: Mapping[str, Any]

    def __call__(self, question: str, answers: Sequence[str]) -> list[float]:
        """In (0, 1), one an answer."""
        outputs = self.trained([shown(question, answer) for answer in answers]).reshape(len(answers))
        return [float(value) for value in 1 / (1 + np.exp(-np.clip(outputs, -30, 30)))]

    def save(self, folder: Path, start: Encoder, data: str, metrics: Mapping[str, Any]) -> Manifest:
        """Write the artefact of a training that started from `start`."""
        weights = self.trained.encoder.weights
        kept = {
            name: value for name, value in weights.items() if not np.array_equal(value, start.weights[name])
        }
        losses = self.trained.losses
        tensors = {
            **kept,
            "head.weight": self.trained.weight,
            "head.bias": self.trained.bias,
            "losses": np.zeros(0, np.float32) if losses is None else losses,
        }
        parameters = {**self.recipe, "encoder": start.shape.wire(), "digest": _digest(start)}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(
            method=KIND, models=(), parameters=parameters, data=data, metrics=metrics, created=now
        )
        return save_artefact(folder, manifest, tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact, and the encoder it started from. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=KIND)
        recipe = dict(manifest.parameters)
        shape, wanted = EncoderShape.parse(recipe.pop("encoder", None)), recipe.pop("digest", "")
        start = starting_encoder(
            str(recipe.get("start", "")), max_tokens=shape.max_tokens, truncate=shape.truncate
        )
        if _digest(start) != wanted:
            raise ArtefactMismatch(
                f"{folder} was trained from another {recipe.get('start')} than the one that is here."
            )
        merged = {**start.tensors(), **tensors}
        return cls(TrainedEncoder.of(merged, shape, 1), recipe)


@dataclass(kw_only=True, eq=False)
class RewardTraining(EncoderTraining):
    """How a process reward is trained. `layers` 0, the default: the head alone. `hard`: a step is good where any
    rollout was right, instead of by their share."""

    layers: int = 0
    epochs: int = 6
    hard: bool = False

    def fit(self, steps: Sequence[LabelledStep]) -> tuple[ProcessReward, Encoder]:
        """The reward, and the encoder it started from. Raises `MethodError`."""
        start = self.starting_encoder(truncate="left")
        labels = np.array([[float(step.label > 0) if self.hard else step.label] for step in steps])

        def loss(rows: NDArray[np.intp], outputs: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
            return multi_label(labels[rows], outputs)

        texts = [shown(step.question, step.answer) for step in steps]
        return ProcessReward(self.train(start, texts, 1, loss), self.recipe()), start


def train_reward(
    steps: Sequence[LabelledStep],
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    report: Callable[[int, int, float], None] | None = None,
) -> Manifest:
    """Train a process reward on 70 % of the questions, judge it on the others, and write it to `out`. Raises
    `MethodError`."""
    known = {field.name for field in fields(RewardTraining)} - {"report"}
    if unknown := sorted(set(options or {}) - known):
        raise MethodError(
            f"A process reward has no option {unknown[0]!r}; it has {', '.join(sorted(known))}."
        )
    held_out = split_mask([step.question for step in steps], HELD_OUT, "test")
    learn = [step for step, kept in zip(steps, held_out, strict=True) if not kept]
    test = [step for step, kept in zip(steps, held_out, strict=True) if kept]
    if not learn or not test:
        raise MethodError(f"{len(steps)} steps are too few to train on some questions and judge on others.")
    reward, start = RewardTraining(**{**(options or {}), "report": report}).fit(learn)
    return reward.save(out, start, digest(steps), {"trained_on": len(learn), **card(reward, test)})


def card(reward: ProcessReward, steps: Sequence[LabelledStep], resamples: int = 1000) -> dict[str, Any]:
    """How well a reward tells good beginnings (label above 0.5) from others: AUC over all, within a question, and of
    the question alone, each with a 95 % interval by resampling questions; and the mean squared error beside that of
    the mean label."""
    value, prior = np.zeros(len(steps)), np.zeros(len(steps))
    by_question: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        by_question.setdefault(step.question, []).append(i)
    for question, rows in by_question.items():
        value[rows] = reward(question, [steps[i].answer for i in rows])
        prior[rows] = reward(question, [""])
    label = np.array([step.label for step in steps])
    good, groups = label > 0.5, [np.array(rows) for rows in by_question.values()]
    return {
        "questions": len(groups),
        "steps": len(steps),
        "good": round(float(good.mean()), 4),
        "auc": _interval(lambda rows: auc(good[np.concatenate(rows)], value[np.concatenate(rows)]), groups, resamples),
        "auc_of_the_question_alone": _interval(
            lambda rows: auc(good[np.concatenate(rows)], prior[np.concatenate(rows)]), groups, resamples
        ),
        "auc_within_a_question": _interval(
            lambda rows: _within([(good[r], value[r]) for r in rows]), groups, resamples
        ),
        "squared_error": round(float(((value - label) ** 2).mean()), 4),
        "squared_error_of_the_mean": round(float(label.var()), 4),
    }  # fmt: skip


def auc(good: NDArray[np.bool_], value: Floats) -> float:
    """The chance that a good one has a larger value than another, equal ones counting half; NaN where all are alike."""
    pairs, count = _won(good, value)
    return pairs / count if count else float("nan")


def _won(good: NDArray[np.bool_], value: Floats) -> tuple[float, int]:
    """Pairs of a good one and another in which the good one has more, and all such pairs."""
    more, less = value[good], np.sort(value[~good])
    below, level = np.searchsorted(less, more, "left"), np.searchsorted(less, more, "right")
    return float((below + level).sum()) / 2, len(more) * len(less)


def _within(parts: Sequence[tuple[NDArray[np.bool_], Floats]]) -> float:
    """AUC over the pairs that belong to one question."""
    won = [_won(good, value) for good, value in parts]
    count = sum(n for _, n in won)
    return sum(pairs for pairs, _ in won) / count if count else float("nan")


def _interval(
    measure: Callable[[list[NDArray[np.intp]]], float], groups: list[NDArray[np.intp]], resamples: int
) -> list[float] | None:
    """Value, and the 2.5 and 97.5 percentiles over resampled groups; None where there is nothing to tell apart."""
    value = measure(groups)
    if np.isnan(value):
        return None
    rng = np.random.default_rng(0)
    drawn = [
        measure([groups[i] for i in rng.integers(0, len(groups), len(groups))]) for _ in range(resamples)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return [round(float(x), 4) for x in (value, low, high)]


def _digest(start: Encoder) -> str:
    """Of an encoder's weights and tokenizer."""
    hashed = hashlib.sha256(start.vocabulary)
    for name in sorted(start.weights):
        hashed.update(name.encode() + start.weights[name].tobytes())
    return hashed.hexdigest()[:16]
