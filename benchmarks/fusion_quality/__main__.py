"""The command: read passages, answer questions, compare; in slices, which find what earlier ones did."""

from __future__ import annotations

import argparse
import json
import queue
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.asking import Asker, Kept, questions
from benchmarks.fusion_quality.reading import FLOOR, Read, ReadingHost
from benchmarks.fusion_quality.report import page
from benchmarks.lineup import Lineup, lineup
from benchmarks.machine import machine
from engines import preload
from engines.engine import prepare_environment
from engines.generation import End, Event
from engines.host import FusionSpec
from engines.weights import Home
from ensembles.spans.base import SpanFusion
from ensembles.tokens.base import Drafts, Search
from ensembles.tokens.gac import GaC
from outcomes.collect import Prompt
from outcomes.metrics import paired_bootstrap

RESULTS = Path(__file__).parent.parent / "results"
PASSAGES = Path(__file__).parent.parent / "passages.txt"
AT_ONCE = 16


def main() -> int:
    """Exit status 2 where a further slice is needed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fusion_quality", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after so many; run it again"
    )
    parser.add_argument("--fusions", default="", help="of benchmarks/fusions.yaml; all by default")
    parser.add_argument("--without", default="", help="of these, leave out")
    parser.add_argument("--questions", type=int, default=112)
    parser.add_argument("--quick", action="store_true", help="8 questions, 4 passages")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kept", type=Path, help="where slices leave what they found")
    parser.add_argument("--out", type=Path, default=RESULTS / "fusion_quality.json", help="and .md beside it")
    asked = parser.parse_args()
    preload.ensure()
    prepare_environment()
    team = lineup(asked.dtype)
    names = asked.fusions.split(",") if asked.fusions else list(team.entries)
    team = team.only([name for name in names if name not in asked.without.split(",")])
    kept = Kept(asked.kept or Home.from_environ().root / "benchmarks" / "fusion_quality.jsonl")
    bench = Bench(team, kept, asked.dtype, 8 if asked.quick else asked.questions, 4 if asked.quick else None)
    complete = bench.run(time.monotonic() + asked.seconds)
    result = {"machine": machine(), "complete": complete, "dtype": asked.dtype, **bench.result()}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    asked.out.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))
    return 0 if complete else 2


class Bench:
    """Passages and questions, and what everybody made of them."""

    def __init__(self, team: Lineup, kept: Kept, dtype: str, asked: int, passages: int | None) -> None:
        self._team, self._kept, self._dtype = team, kept, dtype
        self._questions = questions(asked)
        self._digests = {name: entry.digest for name, entry in team.entries.items()}
        self._passages = [
            (before, " " + text) if not text.startswith('"""') else (before, text)
            for before, text in (
                passage.split(" | ", 1)
                for passage in PASSAGES.read_text(encoding="utf-8").strip().split("\n\n")
            )
        ][:passages]

    # ── measuring ───────────────────────────────────────────────────────────────────────────────────────────

    def run(self, deadline: float) -> bool:
        """Everything that is not known yet; False where time ran out."""
        everybody = [*self._team.engines, *self._team.entries]
        reading = [n for n in everybody if self._reads(n) and self._read_key(n) not in self._kept]
        answering = [n for n in everybody if any(self._key(n, q) not in self._kept for q in self._questions)]
        if not (reading or answering):
            return True
        members = [FusionSpec(f"{name}=alone", (name,), (1.0,), GaC()) for name in self._team.engines]
        host = ReadingHost(
            list(self._team.engines.values()), [*(e.spec for e in self._team.entries.values()), *members]
        )
        host.start()
        try:
            asker = Asker(host, self._team.prompts)
            for name in everybody:
                if name in reading and time.monotonic() < deadline:
                    self._kept.keep(self._read_key(name), [asdict(r) for r in self._read(host, name)])
                    print(f"{name} has read", flush=True)
                if name in answering:
                    self._answer(asker, name, deadline)
        finally:
            host.stop()
        return time.monotonic() < deadline

    def _read(self, host: ReadingHost, name: str) -> list[Read]:
        """Every passage, some at a time."""
        model = name if name in self._team.entries else f"{name}=alone"
        reads: list[Read] = []
        for start in range(0, len(self._passages), AT_ONCE):
            some = self._passages[start : start + AT_ONCE]
            events: queue.SimpleQueue[Event] = queue.SimpleQueue()
            reads += [host.read(model, before, text.encode(), events.put) for before, text in some]
            ends = 0
            while ends < len(some):
                event = events.get(timeout=900)
                ends += isinstance(event, End)
                if error := getattr(event, "error", None):
                    raise error
        return reads

    def _answer(self, asker: Asker, name: str, deadline: float) -> None:
        missing = [q for q in self._questions if self._key(name, q) not in self._kept]
        for start in range(0, len(missing), AT_ONCE):
            if time.monotonic() > deadline:
                return
            some = missing[start : start + AT_ONCE]
            answers = asker.all(name, [(q.prompt, {"max_tokens": q.max_tokens}) for q in some])
            for question, answer in zip(some, answers, strict=True):
                found = {"text": answer.text, "right": question.grade(answer.text)}
                self._kept.keep(self._key(name, question), found)
        print(f"{name} has answered", flush=True)

    def _reads(self, name: str) -> bool:
        """Whether it has a distribution of its own over the next symbol."""
        entry = self._team.entries.get(name)
        return entry is None or not isinstance(entry.spec.fusion, Search | SpanFusion | Drafts)

    def _key(self, name: str, question: Prompt) -> str:
        return f"answer/{self._dtype}/{name}/{self._digests.get(name, 'alone')}/{question.id}"

    def _read_key(self, name: str) -> str:
        return f"read/{self._dtype}/{name}/{self._digests.get(name, 'alone')}/{len(self._passages)}"

    # ── comparing ───────────────────────────────────────────────────────────────────────────────────────────

    def result(self) -> dict[str, Any]:
        """Rows of everybody of whom enough is known."""
        read = [n for n in (*self._team.engines, *self._team.entries) if self._read_key(n) in self._kept]
        nats = {
            name: np.array([Read(**r).nats_per_byte for r in self._kept[self._read_key(name)]])
            for name in read
        }
        impossible = {
            name: sum(r["impossible"] for r in self._kept[self._read_key(name)])
            / sum(len(r["probabilities"]) for r in self._kept[self._read_key(name)])
            for name in read
        }
        right = {
            name: np.array([self._kept[self._key(name, q)]["right"] for q in self._questions])
            for name in (*self._team.engines, *self._team.entries)
            if all(self._key(name, q) in self._kept for q in self._questions)
        }
        return {
            "questions": len(self._questions),
            "passages": len(self._passages),
            "bytes": sum(len(text.encode()) for _, text in self._passages),
            "floor": FLOOR,
            "members": [
                {
                    "model": name,
                    "accuracy": _interval(right[name]) if name in right else None,
                    "perplexity": _perplexity(nats[name]) if name in nats else None,
                }
                for name in self._team.engines
            ],
            "fusions": [
                {
                    "fusion": name,
                    "method": entry.method.id,
                    "members": list(entry.spec.members),
                    "accuracy": _against(right, name, entry.spec.members, larger=True),
                    "perplexity": _against(nats, name, entry.spec.members, larger=False),
                    "impossible": impossible.get(name),
                }
                for name, entry in self._team.entries.items()
            ],
            "absent": dict(self._team.absent),
        }


def _against(
    values: Mapping[str, Any], name: str, members: Sequence[str], *, larger: bool
) -> dict[str, Any] | None:
    """The fusion's mean and its members', and the differences to the best of them and to a random one, with
    intervals. Of nats a byte, means become perplexities, and differences their ratios."""
    if name not in values or any(m not in values for m in members):
        return None
    ours, theirs = values[name], np.stack([values[m] for m in members], axis=1)
    best = int(theirs.mean(0).argmax() if larger else theirs.mean(0).argmin())
    told = _interval if larger else _perplexity
    return {
        "fused": told(ours),
        "best_member": members[best],
        "best": told(theirs[:, best]),
        "random": told(theirs.mean(1)),
        "oracle": told(theirs.max(1) if larger else theirs.min(1)),
        "to_best": told(ours - theirs[:, best]),
        "to_random": told(ours - theirs.mean(1)),
    }


def _interval(values: Any) -> dict[str, float]:
    (found,) = paired_bootstrap(values[:, None])
    return asdict(found)


def _perplexity(nats: Any) -> dict[str, float]:
    return {key: float(np.exp(value)) for key, value in _interval(nats).items()}


if __name__ == "__main__":
    sys.exit(main())
