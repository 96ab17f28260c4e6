"""Published tables, read once a session."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes.table import OutcomeTable, read_table
from tests.conftest import requires
from tests.routers.recorded import accuracies, published, tfidf

IN_DISTRIBUTION = ("mmlu", "gsm8k", "cmmlu", "arc_challenge", "humaneval")


@pytest.fixture(scope="session")
def routerdc() -> tuple[OutcomeTable, dict[str, OutcomeTable]]:
    """RouterDC's seven models on character TF-IDF features: what routers learn from, and the five test
    sets."""
    requires("data")
    folder = Path(os.environ["CHORUS_DATA"]) / "routerdc7"
    with gzip.open(folder / "queries.jsonl.gz") as lines:
        splits = {query["query_id"]: query["split"] for query in map(orjson.loads, lines)}
    table = accuracies(read_table(folder))
    benchmark = np.array(table.categories)
    is_train = np.array([splits[id] == "train" for id in table.query_ids])
    first = [np.flatnonzero(is_train & (benchmark == name))[:1000] for name in IN_DISTRIBUTION]
    held_out = [table.take(~is_train & (benchmark == name)) for name in IN_DISTRIBUTION]
    train, *tests = tfidf(table.take(np.concatenate(first)), *held_out)
    return train, dict(zip(IN_DISTRIBUTION, tests, strict=True))


@pytest.fixture(scope="session")
def llmrouter() -> tuple[OutcomeTable, OutcomeTable]:
    """Nine models on fourteen tasks: (train, held out)."""
    requires("data")
    return published("llmrouter")


@pytest.fixture(scope="session")
def routellm() -> tuple[OutcomeTable, OutcomeTable]:
    """RouteLLM's strong and weak model: (train, held out)."""
    requires("data")
    train, test = published("routellm")
    pair = ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
    return train.only(pair), test.only(pair)
