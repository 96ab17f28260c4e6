"""Train a Pilot and its Copilot together: `python -m engines.train_copilot`.

    each round:  one step of the Pilot on right answers (cross-entropy)  →  its mistakes there go into the log
                 `drills` steps of the Copilot on answers drawn from the log (root mean square of f − ℓ)

The Pilot is any model folder: a small model of the catalogue, or a partner from `python -m engines.partners`. Its last
`tuned` layers learn and it is written to a folder to be served; with 0 it stays as it is and only its mistakes are
learnt. Answers come from a table of graded answers, of which every eighth question is held out; the card of the
artefact says how often the next token was right there, without and with the Copilot, and how well errors were foreseen.

Half of the Copilot's steps read its own corrections in place of past errors, since that is what it has when it
serves."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from engines import lessons
from engines.byte_vocab import ByteVocab
from engines.embedding_rows import TeamTables, digest_of
from engines.mistake_log import Mistakes, mistakes
from engines.union import Union
from engines.weights import CATALOGUE, Home, folders
from ensembles.networks.attention import unit
from ensembles.networks.copilot import Copilot
from ensembles.networks.learner import Learner
from ensembles.tokens.transformer_copilot import Fitted

if TYPE_CHECKING:
    import torch

__all__ = ["Card", "CopilotTraining", "Plan", "evaluate", "main", "train"]

PILOT = "smollm2-135m-instruct"
STRENGTHS = (0.1, 0.2, 0.3, 0.5, 1.0)
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is learnt, and by whom. `rates` of the Pilot and the Copilot."""

    rounds: int = 54
    drills: int = 8
    tuned: int = 6
    kept: int = 256
    layers: int = 2
    size: int = 64
    rates: tuple[float, float] = (1e-4, 2e-3)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """What was found on held-out answers, which were fed as they are while the Copilot read its own corrections.

    `right`: the share of tokens that were the likeliest, of the Pilot, and by λ with the Copilot; `gain` of the default
    λ, with a 95 % interval over answers; root mean square errors of f over the `kept` symbols: `foreseen` by the
    Copilot (reading true past errors: `told`), by the mean error of each symbol, by no error at all."""

    answers: int
    tokens: int
    right_pilot: float
    right: Mapping[str, float]
    gain: tuple[float, float, float]
    rmse_foreseen: float
    rmse_told: float
    rmse_mean: float
    rmse_none: float


class CopilotTraining:
    """A Copilot while it learns from a log. `tables` are of the Pilot alone."""

    def __init__(self, copilot: Copilot, tables: TeamTables, plan: Plan) -> None:
        import torch

        self.copilot, self.tables = copilot, tables
        self.learner = Learner(copilot.weights, plan.rates[1], plan.rounds * plan.drills, seed=plan.seed)
        self._chance = torch.Generator().manual_seed(plan.seed)

    def drill(self, log: Sequence[Mistakes]) -> float:
        """One step on answers drawn from the log; returns its loss."""
        import torch

        rows = torch.randint(len(log), (lessons.BATCH,), generator=self._chance).tolist()
        batch = _Batch.of([log[row] for row in rows], self.tables)
        past = batch.errors
        if len(self.learner.losses) % 2:
            with torch.no_grad():
                past = batch.foreseen(self.copilot, past)
        return self.learner.step(lambda: batch.distance(batch.foreseen(self.copilot, past)))


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Answers side by side, padded on the right and their prompts on the left: `counts` (n, longest) tells what is
    there; `at` (n, longest, kept + 1) where the log's symbols stand among all that occur, whose embeddings are `e`."""

    prompt: torch.Tensor
    starts: torch.Tensor
    states: torch.Tensor
    errors: torch.Tensor
    at: torch.Tensor
    e: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, entries: Sequence[Mistakes], tables: TeamTables) -> _Batch:
        import torch

        longest, asked = (
            max(len(x) for x in each) for each in zip(*((m.came, m.prompt) for m in entries), strict=True)
        )
        width, kept = entries[0].states.shape[1], entries[0].symbols.shape[1]
        n = len(entries)
        states, errors = torch.zeros(n, longest, width), torch.zeros(n, longest, kept)
        symbols = torch.zeros(n, longest, kept, dtype=torch.int64)
        prompt, counts = torch.zeros(n, asked, width), torch.zeros(n, longest, dtype=torch.bool)
        for i, m in enumerate(entries):
            here = len(m.came)
            states[i, :here], errors[i, :here], symbols[i, :here] = m.states.float(), m.errors, m.symbols
            prompt[i, asked - len(m.prompt) :] = unit(tables.embeddings(0, m.prompt, "input"))
            counts[i, :here] = True
        starts = torch.tensor([asked - len(m.prompt) for m in entries])
        occurring, at = torch.unique(symbols, return_inverse=True)
        e = unit(tables.embeddings(0, occurring, "output"))
        return cls(prompt, starts, states, errors, at, e, counts)

    def foreseen(self, copilot: Copilot, past: torch.Tensor) -> torch.Tensor:
        """F, shape (n, longest, kept + 1), where `past` are the errors, or corrections, of the same shape."""
        import torch

        said = self.said(past, self.at)
        before = torch.cat([torch.zeros_like(said[:, :1]), said[:, :-1]], 1)
        direction, _ = copilot.foresee(before, self.prompt, self.states, starts=self.starts)
        return (direction @ self.e.T).gather(-1, self.at)

    def said(self, f: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Σ_v f(v) e_v, shape (…, D), of f for the symbols at `at`, (…, kept + 1)."""
        return f.new_zeros(*f.shape[:-1], len(self.e)).scatter_add(-1, at, f) @ self.e

    def distance(self, f: torch.Tensor) -> torch.Tensor:
        """The root of the mean square of f − ℓ over what is there."""
        return (f - self.errors)[self.counts].square().mean().sqrt()


def train(
    folder: Path, out: Path, pilot_out: Path, table: Path, plan: Plan, *, most: int | None = None
) -> Card:
    """Train on the model in `folder`; writes the artefact to `out` and a tuned Pilot to `pilot_out`. Takes minutes.

    `most`: how many of the answers held out are looked at."""
    import torch

    torch.manual_seed(plan.seed)
    learnt, kept = lessons.lessons(table, folder)
    kept = kept[:most]
    pilot = lessons.load(folder)
    depth = len(pilot.model.layers)
    lessons.freeze_below(pilot, depth - plan.tuned)
    tables = TeamTables(Union.of([ByteVocab.load(folder)]), [folder], {})
    copilot = Copilot.new(pilot.config.hidden_size, layers=plan.layers, size=plan.size, seed=plan.seed)
    training = CopilotTraining(copilot, tables, plan)
    tuned = {name: value for name, value in pilot.named_parameters() if plan.tuned and value.requires_grad}
    pupil = Learner(tuned, plan.rates[0], plan.rounds, seed=plan.seed) if tuned else None
    log: list[Mistakes] = []
    losses: list[float] = []
    for number, batch in enumerate(lessons.batches(learnt, plan.rounds, plan.seed)):

        def loss(batch: Sequence[lessons.Lesson] = batch) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                reading = lessons.read(pilot, batch, inside=True)
            log.extend(mistakes(reading, tables.alphabet, plan.kept))
            return torch.nn.functional.cross_entropy(reading.logits, reading.labels)

        if pupil is not None:
            losses.append(pupil.step(loss))
        else:
            with torch.no_grad():
                losses.append(float(loss()))
        for _ in range(plan.drills):
            training.drill(log)
        print(f"{number + 1:>4} pilot {losses[-1]:.4f} copilot {training.learner.losses[-1]:.5f}", flush=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [kept[i : i + lessons.BATCH] for i in range(0, len(kept), lessons.BATCH)]
        readings = [lessons.read(pilot, part, inside=True) for part in parts]
        held = [m for reading in readings for m in mistakes(reading, tables.alphabet, plan.kept)]
    card = evaluate(copilot, tables, log, held)
    if tuned:
        lessons.save(pilot, folder, pilot_out)
        folder = pilot_out
    _keep(out, folder, copilot, plan, depth, card, {"pilot": losses, "copilot": training.learner.losses})
    return card


def evaluate(copilot: Copilot, tables: TeamTables, log: Sequence[Mistakes], held: Sequence[Mistakes]) -> Card:
    """The card of `copilot` on the answers `held`; the mean error is that of `log`."""
    import torch

    mean = _mean_error(log, tables.alphabet.size)
    hits: dict[float, list[float]] = {strength: [] for strength in (0.0, *STRENGTHS)}
    sizes, squares = [], torch.zeros(4)
    with torch.no_grad():
        for m in held:
            batch = _Batch.of([m], tables)
            told = batch.foreseen(copilot, batch.errors)[0]
            own = _on_its_own(copilot, batch)[0]
            for strength, found in hits.items():
                found.append(float(((m.expected + strength * own).argmax(-1) == m.came).sum()))
            guesses = (own, told, mean[m.symbols], torch.zeros_like(own))
            squares += torch.stack([(guess - m.errors).square().sum() for guess in guesses])
            sizes.append(len(m.came))
    tokens, entries = sum(sizes), sum(m.errors.numel() for m in held)
    shares = {strength: sum(found) / tokens for strength, found in hits.items()}
    default = 0.3
    gain = (shares[default] - shares[0.0], *_interval(hits[default], hits[0.0], sizes))
    rmse = [round(float(x), 6) for x in (squares / entries).sqrt()]
    right = {str(strength): round(share, 4) for strength, share in shares.items() if strength}
    low, high = gain[1:]
    return Card(
        len(held),
        tokens,
        round(shares[0.0], 4),
        right,
        (round(gain[0], 4), round(low, 4), round(high, 4)),
        *rmse,
    )


def _on_its_own(copilot: Copilot, batch: _Batch) -> torch.Tensor:
    """F as it is when the Copilot reads its own corrections, shape (1, n, kept + 1)."""
    import torch

    out, said, past = [], torch.zeros_like(batch.states[:, :1]), None
    for i in range(batch.states.shape[1]):
        prompt = batch.prompt if past is None else batch.prompt[:, :0]
        direction, past = copilot.foresee(said, prompt, batch.states[:, i : i + 1], past=past, first=i)
        at = batch.at[:, i : i + 1]
        out.append((direction @ batch.e.T).gather(-1, at))
        said = batch.said(out[-1], at)
    return torch.cat(out, 1)


def _mean_error(log: Sequence[Mistakes], size: int) -> torch.Tensor:
    """Each symbol's mean error in the log, where it was among those looked at; shape (size,)."""
    import torch

    total, times = torch.zeros(size), torch.zeros(size)
    for m in log:
        total.index_add_(0, m.symbols.flatten(), m.errors.flatten())
        times.index_add_(0, m.symbols.flatten(), torch.ones(m.symbols.numel()))
    return total / times.clamp_min(1)


def _interval(a: Sequence[float], b: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """The 95 % interval of the difference in hits a token, answers being drawn anew."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    difference, counts = np.subtract(a, b)[drawn].sum(1), np.array(sizes)[drawn].sum(1)
    low, high = np.quantile(difference / counts, (0.025, 0.975))
    return float(low), float(high)


def _keep(
    out: Path,
    pilot: Path,
    copilot: Copilot,
    plan: Plan,
    depth: int,
    card: Card,
    losses: Mapping[str, Sequence[float]],
) -> None:
    """Write the artefact."""
    fitted = Fitted(copilot, plan.kept, depth, digest_of(pilot))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    metrics = {
        **asdict(card),
        "plan": asdict(plan),
        "losses": {kind: _thinned(x) for kind, x in losses.items()},
    }
    fitted.save(out, (pilot.name,), metrics=metrics, created=created)


def _thinned(losses: Sequence[float], points: int = 24) -> list[float]:
    """Means over equal stretches of a curve."""
    every = -(-len(losses) // points)
    parts = [losses[i : i + every] for i in range(0, len(losses), every)]
    return [round(sum(part) / len(part), 5) for part in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, print the card."""
    home = Home.from_environ()
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m engines.train_copilot", description="Train a model and the Copilot that corrects it."
    )
    parser.add_argument(
        "pilot", nargs="?", default=PILOT, help=f"weights id ({', '.join(CATALOGUE)}) or a model's folder"
    )
    parser.add_argument("--answers", type=Path, default=lessons.ANSWERS, help="table of graded answers")
    parser.add_argument(
        "--out", type=Path, default=home.root / "copilots" / "copilot", help="the artefact's folder"
    )
    parser.add_argument(
        "--pilot-out", type=Path, default=home.root / "copilots" / "pilot", help="folder of the tuned Pilot"
    )
    parser.add_argument(
        "--rounds", type=int, default=plan.rounds, help=f"steps of the Pilot, {lessons.BATCH} answers each"
    )
    parser.add_argument(
        "--drills", type=int, default=plan.drills, help="steps of the Copilot after each of them"
    )
    parser.add_argument(
        "--tuned", type=int, default=plan.tuned, help="the Pilot's layers that learn; 0: none"
    )
    parser.add_argument("--report", type=Path, help="JSON file for the card")
    asked = parser.parse_args(arguments)
    folder = folders([asked.pilot])[asked.pilot]
    began = time.monotonic()
    plan = Plan(rounds=asked.rounds, drills=asked.drills, tuned=asked.tuned)
    card = train(folder, asked.out, asked.pilot_out, asked.answers, plan)
    report = {
        "pilot": folder.name,
        "plan": asdict(plan),
        "seconds": round(time.monotonic() - began),
        **asdict(card),
    }
    lessons.tell(report, asked.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
