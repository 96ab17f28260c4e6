"""Whether knowing how hard a question is would help a router, and whether a small language model's reading of it does.

`python -m benchmarks.routers.difficulty`

Cross-validation within the *training* part of a source, folds by hash of the text, as in `headroom`; the
leaderboard's test queries are not looked at. Two questions:

- What is the *true* difficulty of a question worth, its mean score over all models? The rule that takes the best model
  of each task, and `stacking`, are told it: for queries held out too, so these are ceilings and no routers.
- What does a packaged language model know of a question before anybody answers? Its surprise at the words (statistics
  of the negative log-likelihood), the entropy of its first answer token, and states of a layer three quarters up stand
  beside the embedding.

`stacking` from another seed tells how much of a difference is luck.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from benchmarks.routers.__main__ import RESULTS
from benchmarks.routers.at_hand import at_hand
from benchmarks.routers.headroom import FOLDS, TASK_RULE, summary, told
from engines.weights import Home
from outcomes import metrics
from outcomes.assignment import utility_choice
from outcomes.compare import Fitted, Row, compare, complete
from outcomes.embedding_cache import cached_embeddings, embedded
from outcomes.table import OutcomeTable, hash_folds, read_table, split
from routers.stacking import Stacking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

READER = "smollm2-135m-instruct"
HEAD, TAIL = 64, 192
"""Tokens read of a long text, from its start and its end."""
SCORED = 96
"""Last tokens whose likelihood counts."""
STATISTICS = 9
WEIGHT = 0.2
"""Of a standardised feature beside an embedding of unit length."""
KEPT = 25
"""Principal components of each pooled state."""
BINS = (2, 5)
"""Parts that the range of difficulty is cut into."""


class Reader:
    """A language model as an embedder: `STATISTICS` figures of how it reads a question, then the mean of a late layer's
    states over the question and the state after which the answer begins. Needs torch and transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        return f"{self.folder.name} reading {HEAD}+{TAIL}, {SCORED} scored"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (n_texts, STATISTICS + 2 · dimensions)."""
        asked = [self._asked(text) for text in texts]
        order = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), 8):
            rows = order[start : start + 8]
            found |= zip(rows, self._read([asked[i] for i in rows]), strict=True)
        return np.stack([found[i] for i in range(len(asked))])

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        lm = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.bfloat16).eval()
        return AutoTokenizer.from_pretrained(self.folder), lm

    def _asked(self, text: str) -> tuple[list[int], int, int]:
        """The tokens of a chat that asks `text`, and where the text begins and ends in them."""
        tokenizer, _ = self._model
        before, ids, after = (
            tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in ("<|im_start|>user\n", text, "<|im_end|>\n<|im_start|>assistant\n")
        )
        if len(ids) > HEAD + TAIL:
            ids = ids[:HEAD] + ids[-TAIL:]
        return before + ids + after, len(before), len(before) + len(ids)

    def _read(self, asked: Sequence[tuple[list[int], int, int]]) -> list[NDArray[np.float32]]:
        import torch

        _, lm = self._model
        ids = torch.zeros(len(asked), max(len(row) for row, _, _ in asked), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (row, _, _) in enumerate(asked):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        found = []
        with torch.no_grad():
            out = lm.model(ids, attention_mask=mask, output_hidden_states=True)
            late = out.hidden_states[3 * lm.config.num_hidden_layers // 4].float()
            for i, (row, start, end) in enumerate(asked):
                first = max(start, end - SCORED)
                logits = lm.lm_head(out.last_hidden_state[i, [*range(first - 1, end - 1), len(row) - 1]])
                whole = torch.logsumexp(logits, -1).float()
                said = logits[:-1].gather(1, ids[i, first:end, None])[:, 0].float()
                surprise = (whole[:-1] - said).numpy() if end > first else np.zeros(1)
                answer = (logits[-1].float() - whole[-1]).numpy()
                states = [late[i, start : max(end, start + 1)].mean(0), late[i, len(row) - 1]]
                found.append(
                    np.concatenate([_statistics(surprise, answer, len(row)), *states]).astype(np.float32)
                )
        return found


def main() -> int:
    """Exit status 2 without data or weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("CHORUS_DATA"))
    parser.add_argument("--sources", default="llmrouter,routerbench_subset", help="told the true difficulty")
    parser.add_argument("--read", default="llmrouter", help="those the language model reads, 0.1 s a query")
    parser.add_argument("--embedder", default="all-minilm-l6-v2-int8")
    parser.add_argument("--out", type=Path, default=RESULTS / "router-difficulty.json")
    asked = parser.parse_args()
    if (have := at_hand(asked)) is None:
        return 2
    embedder, embeddings = have
    weights = Home.from_environ().weights / READER
    if asked.read and not weights.is_dir():
        print(f"No {weights}.")
        return 2
    found: dict[str, Any] = {
        "about": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
            "command": "python -m benchmarks.routers.difficulty",
            "folds": FOLDS,
            "reader": READER,
        },
        "sources": {},
    }
    for source in asked.sources.split(","):
        table, _ = split(complete(embedded(read_table(asked.data / source), embedder, embeddings)))
        reading = None
        if source in asked.read.split(","):
            reading = cached_embeddings(table.queries.texts, Reader(weights), embeddings)
        found["sources"][source] = {"queries": len(table), "rows": _rows(table, reading)}
        asked.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


def _rows(table: OutcomeTable, reading: NDArray[np.float32] | None) -> dict[str, Any]:
    """What every way closes of the gap, by fold, and how much more than `stacking`."""
    fold = hash_folds(table.queries.texts, FOLDS, "headroom fold")
    rows: dict[str, list[Row]] = {}
    score: dict[str, Floats] = {}
    for i in range(FOLDS):
        rest, held = fold != i, fold == i
        for name, (seen, make) in _ways(table, reading, rest).items():
            row, choice = _judged(seen.take(rest), seen.take(held), make)
            rows.setdefault(name, []).append(row)
            if choice is not None:
                own = score.setdefault(name, np.full(len(table), np.nan))
                own[held] = metrics.chosen(table.score[held], choice)
        print(i, {name: round(found[-1].gap, 3) for name, found in rows.items()}, flush=True)
    reach = metrics.oracle(table.score).mean() - table.score.mean(axis=0).max()
    more = {name: (own - score["stacking"]) / reach for name, own in score.items() if name != "stacking"}
    intervals = metrics.paired_bootstrap(np.stack(list(more.values()), axis=1))
    found = {name: summary(own) for name, own in rows.items()}
    for name, interval in zip(more, intervals, strict=True):
        found[name]["gap_over_stacking"] = asdict(interval)
    return found


def _ways(
    table: OutcomeTable, reading: NDArray[np.float32] | None, rest: NDArray[np.bool_]
) -> dict[str, tuple[OutcomeTable, Callable[[], Stacking] | None]]:
    """What a way sees of the queries, and what learns from it; None: the rule that knows the categories."""
    ways: dict[str, tuple[OutcomeTable, Callable[[], Stacking] | None]] = {
        "stacking": (table, Stacking),
        "stacking, another seed": (table, partial(Stacking, seed=1)),
        "the best model of each task": (table, None),
    }
    for bins in BINS:
        ways[f"the best model of each task and each of {bins} true difficulties"] = _graded(table, bins), None
    finest = told(_graded(table, BINS[-1]))
    ways[f"stacking, told the task and which of {BINS[-1]} true difficulties"] = finest, Stacking
    if reading is not None:
        statistics, both = (_beside(table, part, rest) for part in (reading[:, :STATISTICS], reading))
        more = 25 + STATISTICS + 2 * KEPT
        ways["stacking, with the reader's statistics"] = statistics, Stacking
        ways["stacking, with the reader's statistics and states"] = both, partial(Stacking, components=more)
    return ways


def _judged(
    train: OutcomeTable, test: OutcomeTable, make: Callable[[], Stacking] | None
) -> tuple[Row, NDArray[np.intp] | None]:
    """A way's figures, and what a router chose for each query."""
    if make is None:
        return next(row for row in compare(train, test, {}).baselines if row.name == TASK_RULE), None
    kept: list[Fitted] = []

    def keep(_: str, fit: Callable[[], Fitted]) -> Fitted:
        kept.append(fit())
        return kept[0]

    (row,) = compare(train, test, {"stacking": make}, through=keep).routers
    return row, utility_choice(kept[0].estimate, 0.0)


def _graded(table: OutcomeTable, bins: int) -> OutcomeTable:
    """The same queries in categories of task and true difficulty."""
    grade = np.minimum((table.score.mean(axis=1) * bins).astype(int), bins - 1)
    return replace(
        table, categories=tuple(f"{name}, {i}" for name, i in zip(table.categories, grade, strict=True))
    )


def _beside(table: OutcomeTable, reading: NDArray[np.float32], rest: NDArray[np.bool_]) -> OutcomeTable:
    """`reading` beside the embeddings: statistics standardised, pooled states by their leading components, both learnt
    from the queries of `rest`."""
    centre, spread = reading[rest].mean(axis=0), reading[rest].std(axis=0) + 1e-6
    scaled = np.clip((reading - centre) / spread, -4.0, 4.0)
    parts = [WEIGHT * scaled[:, :STATISTICS]]
    if states := reading.shape[1] - STATISTICS:
        for pooled in np.split(scaled[:, STATISTICS:], 2, axis=1):
            _, _, axes = np.linalg.svd(pooled[rest], full_matrices=False)
            parts.append(pooled @ axes[:KEPT].T / np.sqrt(states / 2))
    assert table.queries.embeddings is not None
    return table.embedded(np.concatenate([table.queries.embeddings, *parts], axis=1).astype(np.float32))


def _statistics(surprise: Floats, answer: Floats, tokens: int) -> list[float]:
    """Of the scored tokens' negative log-likelihoods: mean, deviation, mean of the later half and of the last 16, the
    ninth decile, the most; of the answer's first token: entropy and greatest log-probability; the length."""
    later = surprise[len(surprise) // 2 :], surprise[-16:]
    return [
        *(surprise.mean(), surprise.std(), later[0].mean(), later[1].mean()),
        *(np.quantile(surprise, 0.9), surprise.max()),
        *(-(np.exp(answer) * answer).sum(), answer.max(), np.log1p(tokens)),
    ]


if __name__ == "__main__":
    sys.exit(main())
