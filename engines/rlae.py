"""Train RLAE's policy on graded questions: `python -m engines.rlae --agents ppo|mappo --out FOLDER`.

Two engines write answers as they do when they serve, with weights that are tried out; each answer is graded by its
question's rule, and the grade is all that is learnt from. Several answers to one question go side by side, each in a
slot of its own, a fusion that remembers what it tried. Greedy, so that answers differ by their weights alone.

A table of outcomes says which questions are worth practising: those that some member gets right alone and another one
does not. Held-out questions (`outcomes.table.split_mask`, by a hash of their text) are never among them."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import queue
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.engine import EngineSpec, prepare_environment
from engines.generation import Failure, Generation, Piece, Sampling
from engines.host import FusionSpec, Host
from engines.templates import prompting
from engines.weights import ensure
from ensembles.tokens.base import Decision, Fusion, Step
from ensembles.tokens.gac import GaC
from ensembles.tokens.rlae import RLAE
from outcomes.artefact import Manifest
from outcomes.collect import Prompt, read_prompts
from outcomes.embedder import embedder_id, load_embedder
from outcomes.table import query_id, read_table, split_mask
from outcomes.weight_policy import Encode, Learner, Rollout, WeightPolicy, encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["School", "main", "practised", "tasks"]

MEMBERS = {"smollm2-135m": "smollm2-135m-instruct", "gemma3-270m": "gemma3-270m"}
EMBEDDER = "all-minilm-l6-v2-int8"
QUERIES = Path("config/queries/everyday.jsonl")
OUTCOMES = Path("config/queries/everyday.outcomes.parquet")
SLOTS = 32
HELD_OUT = 0.3


def tasks(path: Path, *, held_out: bool) -> list[Prompt]:
    """The questions of a file that are kept for the test, or all others."""
    prompts = read_prompts(path)
    mask = split_mask([prompt.prompt for prompt in prompts], HELD_OUT, "test")
    return [prompt for prompt, out in zip(prompts, mask, strict=True) if bool(out) is held_out]


def practised(known: Sequence[Prompt], outcomes: Path) -> list[Prompt]:
    """Those of the tasks that, by the table, some model gets right and another one does not."""
    table = read_table(outcomes)
    differ = table.score.max(axis=1) > table.score.min(axis=1)
    wanted = {id for id, one in zip(table.query_ids, differ, strict=True) if one}
    return [task for task in known if query_id(task.prompt) in wanted]


@dataclass(slots=True)
class Slot:
    """A fusion for one answer at a time, which tries weights out and remembers them; served like any other."""

    learner: Learner
    encode: Encode
    span: int
    rule: Fusion = field(default_factory=GaC)
    features: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)

    def weigh(self, prompt: str, text: str, weights: tuple[float, ...]) -> tuple[float, ...]:
        """Weights to try."""
        self.features.append(self.encode(prompt, text))
        self.actions.append(z := self.learner.act(self.features[-1]))
        shares = np.exp(z.astype(np.float64) - z.max())
        return tuple((shares / shares.sum()).tolist())

    def decide(self, step: Step) -> Decision:
        """The rule's decision under the weights."""
        return self.rule.decide(step)

    def rollout(self, reward: float, group: str) -> Rollout:
        """What was tried for one answer; forgets it."""
        tried = Rollout(np.stack(self.features), np.stack(self.actions), reward, group)
        self.features.clear()
        self.actions.clear()
        return tried


class School:
    """The members, loaded, and whoever writes with them. Close it."""

    def __init__(self, fusions: Sequence[FusionSpec], dtype: str = "float32") -> None:
        prepare_environment()
        folders = ensure(MEMBERS.values())
        self.host = Host(
            [
                EngineSpec(name, folders[weights], dtype, 512, 0.25, SLOTS)
                for name, weights in MEMBERS.items()
            ],
            fusions,
        )
        self._prompts = {name: prompting(folders[weights]) for name, weights in MEMBERS.items()}
        self._ids = itertools.count()
        self.host.start()

    def close(self) -> None:
        """End the engines."""
        self.host.stop()

    def answers(self, asked: Sequence[tuple[str, Prompt]]) -> list[str]:
        """Greedy answers of (model, task) pairs, side by side."""
        waiting = []
        for model, task in asked:
            members = self.host.members_of(model)
            rendered = [self._prompts[m].render([{"role": "user", "content": task.prompt}]) for m in members]
            prompts = tuple(
                tuple(self.host.vocabs[m].encode_prompt(one.text))
                for m, one in zip(members, rendered, strict=True)
            )
            sampling = Sampling(
                max_tokens=task.max_tokens,
                temperature=0.0,
                stops=tuple(stop for one in rendered for stop in one.stops),
                before=next((one.before for one in rendered if one.before), b""),
            )
            events: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self.host.submit(Generation(f"r{next(self._ids)}", model, prompts, sampling), events.put)
            waiting.append(events)
        texts = []
        for events in waiting:
            text = ""
            while isinstance(event := events.get(), Piece):
                text += event.text
            if isinstance(event, Failure):
                raise event.error
            texts.append(text)
        return texts


def train(asked: argparse.Namespace) -> WeightPolicy:
    """Practise for `--minutes` or `--rounds`, whichever is over first, and write the artefact."""
    prepare_environment()  # before torch is imported to learn with
    folder = ensure([EMBEDDER])[EMBEDDER]
    embedder = load_embedder(folder)
    encode = encoder(lambda texts: embedder.embed_counted(texts)[0], embedder.dimensions)
    learner = Learner(len(MEMBERS), 2 * embedder.dimensions, agents=asked.agents, seed=asked.seed)
    slots = {f"slot-{n}": Slot(learner, encode, asked.span) for n in range(SLOTS)}
    names, weights = tuple(MEMBERS), (1.0,) * len(MEMBERS)
    school = School([FusionSpec(name, names, weights, slot) for name, slot in slots.items()])
    chosen = practised(tasks(QUERIES, held_out=False), OUTCOMES)
    rng = np.random.default_rng(asked.seed)
    groups = SLOTS // asked.answers
    began, curve, done = time.monotonic(), [], 0
    try:
        while done < asked.rounds and time.monotonic() - began < 60 * asked.minutes:
            picked = [chosen[i] for i in rng.choice(len(chosen), groups, replace=False)]
            each = list(zip(slots, [task for task in picked for _ in range(asked.answers)], strict=False))
            texts = school.answers(each)
            rollouts = [
                slots[name].rollout(task.grade(text), task.prompt)
                for (name, task), text in zip(each, texts, strict=True)
            ]
            learner.learn(rollouts)
            curve.append(float(np.mean([rollout.reward for rollout in rollouts])))
            done += 1
            if done % 5 == 0:
                sys.stdout.write(f"round {done}: {np.mean(curve[-5:]):.2f} right\n")
                sys.stdout.flush()
    finally:
        school.close()
    policy = learner.policy()
    manifest = Manifest(
        method="rlae",
        models=names,
        parameters={"span": asked.span, "agents": asked.agents},
        embedder=embedder_id(folder),
        data=hashlib.sha256(QUERIES.read_bytes()).hexdigest()[:16],
        metrics={
            "rounds": done,
            "answers": done * groups * asked.answers,
            "questions": len(chosen),
            "minutes": round((time.monotonic() - began) / 60, 1),
            "reward_first_ten_rounds": round(float(np.mean(curve[:10])), 3),
            "reward_last_ten_rounds": round(float(np.mean(curve[-10:])), 3),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    sys.stdout.write(f"{policy.save(asked.out, manifest)}\n")
    return policy


def served(artefact: Path, name: str) -> FusionSpec:
    """A fusion by a trained artefact, as a config has it."""
    embedder = ensure([EMBEDDER])[EMBEDDER]
    fusion = RLAE(str(embedder)).load(tuple(MEMBERS), {"policy": artefact})
    return FusionSpec(name, tuple(MEMBERS), (1.0,) * len(MEMBERS), fusion)


def main() -> int:
    """Train and write."""
    parser = argparse.ArgumentParser(prog="python -m engines.rlae", description=__doc__)
    parser.add_argument("--agents", choices=("ppo", "mappo"), default="ppo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--answers", type=int, default=4, help="to one question, side by side")
    parser.add_argument("--span", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
