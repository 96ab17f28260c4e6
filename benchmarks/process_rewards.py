"""What a process reward buys, with an oracle for one and with the trained one: `python -m benchmarks.process_rewards`.

Auto-graded questions of one category, on the two small models: each alone, ensemble-hub, and le-mcts with ever more
iterations. The oracle is the grader itself, which no product has: it shows what the search could find, not what it
finds. The trained reward is the artefact of `chorus spans reward` (`--reward`), whose held-out questions are counted
apart. Writes benchmarks/results/process_rewards.{json,md}."""

from __future__ import annotations

import argparse
import json
import os
import queue
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.assemble import engine_specs
from engines.generation import End, Event, Generation, Sampling
from engines.host import FusionSpec, Host
from engines.rollouts import heard
from engines.templates import Prompting, prompting
from ensembles.rewards import Reward
from ensembles.spans.ensemble_hub import EnsembleHub
from ensembles.steps.le_mcts import LeMCTS
from outcomes.artefact import read_manifest
from outcomes.collect import Prompt, read_prompts
from outcomes.metrics import paired_bootstrap
from outcomes.process_reward import HELD_OUT, ProcessReward
from outcomes.table import split_mask
from protocol.settings import load_settings

RESULTS = Path(__file__).parent / "results"


class Oracle:
    """The grader in the place of a reward: 1 for what is right already, 0 for what is not; a half before a word."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = {prompt.prompt: prompt for prompt in prompts}

    def __call__(self, question: str, answers: Sequence[str]) -> list[float]:
        prompt = self._prompts[question]
        return [prompt.grade(text) if text.strip() else 0.5 for text in answers]


def main() -> int:
    """Ask every question of everybody; print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.process_rewards")
    parser.add_argument("--config", type=Path, default=Path("config/local.yaml"))
    parser.add_argument("--queries", type=Path, default=Path("config/queries/everyday.jsonl"))
    parser.add_argument("--category", default="arithmetic")
    parser.add_argument("--questions", type=int, default=56)
    parser.add_argument("--reward", type=Path, help="artefact of `chorus spans reward`")
    parser.add_argument("--iterations", default="1,4,16", help="of le-mcts; the trained reward gets the last")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    prompts = [p for p in read_prompts(asked.queries) if p.category == asked.category][: asked.questions]
    iterations = [int(n) for n in asked.iterations.split(",")]
    settings = load_settings(asked.config)
    specs = engine_specs(settings)
    names = tuple(spec.name for spec in specs)
    judges: dict[str, Reward] = {"oracle": Oracle(prompts)}
    if asked.reward is not None:
        judges["trained"] = ProcessReward.load(asked.reward)
    methods = {
        f"{method} · {judge}": fusion
        for judge, reward in judges.items()
        for method, fusion in (
            ("ensemble-hub", EnsembleHub(reward=reward)),
            *(
                (f"le-mcts, n = {n}", LeMCTS(iterations=n, reward=reward))
                for n in (iterations if judge == "oracle" else iterations[-1:])
            ),
        )
    }
    share = (1.0,) * len(names)
    host = Host(specs, [FusionSpec(name, names, share, m, feedback="retail") for name, m in methods.items()])
    host.start()
    try:
        renders = {spec.name: prompting(spec.folder) for spec in specs}
        rows = []
        for model in (*names, *methods):
            began, cpu = time.monotonic(), time.process_time()
            answers = _answers(host, renders, model, prompts, asked.seed)
            rows.append(
                {
                    "model": model,
                    "right": [p.grade(text) for p, (text, _) in zip(prompts, answers, strict=True)],
                    "tokens": sum(
                        member.completion_tokens for _, end in answers for member in end.members
                    ) / len(prompts),
                    "cpu_s": (time.process_time() - cpu) / len(prompts),
                    "seconds": time.monotonic() - began,
                }
            )  # fmt: skip
            print(model, sum(rows[-1]["right"]), "of", len(prompts), flush=True)
            _write(rows, prompts, asked)  # after every row: a run that is stopped has told what it knew
    finally:
        host.stop()
    return 0


def _answers(
    host: Host, renders: dict[str, Prompting], model: str, prompts: Sequence[Prompt], seed: int
) -> list[tuple[str, End]]:
    """All at once; members alone greedily, methods as they draft by themselves."""
    waiting = []
    members = host.members_of(model)
    for n, prompt in enumerate(prompts):
        rendered = [renders[m].render([{"role": "user", "content": prompt.prompt}]) for m in members]
        sampling = Sampling(
            max_tokens=prompt.max_tokens,
            temperature=0.0 if len(members) == 1 else 1.0,
            seed=seed + n,
            stops=tuple(stop for one in rendered for stop in one.stops),
            before=next((one.before for one in rendered if one.before), b""),
        )
        ids = tuple(
            tuple(host.vocabs[m].encode_prompt(one.text)) for m, one in zip(members, rendered, strict=True)
        )
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        host.submit(Generation(f"{model}-{n}", model, ids, sampling, question=prompt.prompt), events.put)
        waiting.append(events)
    return [heard(events) for events in waiting]


def _write(rows: list[dict[str, object]], prompts: Sequence[Prompt], asked: argparse.Namespace) -> None:
    unseen = split_mask([prompt.prompt for prompt in prompts], HELD_OUT, "test")
    score = np.array([row["right"] for row in rows], dtype=np.float64).T
    every, kept = paired_bootstrap(score), paired_bootstrap(score[unseen])
    lines = [
        "# A process reward over two small models",
        "",
        f"`python -m benchmarks.process_rewards`: {len(prompts)} questions ({asked.category}), {int(unseen.sum())} of "
        "which the trained reward never saw; 95 % intervals by resampling questions. Members alone answer greedily; "
        "methods draft at their own temperatures. The oracle is the grader itself: what a search could find, not what "
        "it finds.",
        "",
        "| model | right, all | right, unseen | tokens an answer, both members | CPU s an answer |",
        "|---|---|---|---|---|",
    ]
    for row, all_, new in zip(rows, every, kept, strict=True):
        row["accuracy"], row["unseen"] = [[i.mean, i.low, i.high] for i in (all_, new)]
        told = " | ".join(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (all_, new))
        lines.append(f"| {row['model']} | {told} | {row['tokens']:.1f} | {row['cpu_s']:.2f} |")
    report = {
        "questions": len(prompts),
        "unseen": int(unseen.sum()),
        "category": asked.category,
        "seed": asked.seed,
        "reward": None if asked.reward is None else read_manifest(asked.reward).metrics,
        "cores": os.cpu_count(),
        "rows": rows,
    }
    (RESULTS / "process_rewards.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "process_rewards.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
