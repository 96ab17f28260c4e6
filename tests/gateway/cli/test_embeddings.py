"""Any `/v1/embeddings` as the embedder of the learning commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from gateway.cli.embeddings import BATCH, RemoteEmbedder
from outcomes.artefact import read_manifest
from outcomes.table import write_table
from protocol.errors import UpstreamBroken, UpstreamError
from tests.contracts.router_checks import TOPICS, outcomes


def _topics(body: dict) -> tuple[int, dict[str, str], bytes]:
    """An embedding that tells the topics of the contract suite's queries, last text first."""
    found = []
    for i, text in reversed(list(enumerate(body["input"]))):
        vector = [3.0 * text.startswith(topic) + 0.01 * (len(text) % 5) for topic in TOPICS]
        found.append({"object": "embedding", "index": i, "embedding": vector})
    return 200, {}, orjson.dumps({"object": "list", "data": found})


def test_texts_are_asked_in_batches_and_come_back_in_order(gateway) -> None:
    """Rows are those of the texts, of unit length, whatever order the API answers in; the key goes along."""
    gateway.answer = _topics
    texts = [f"{TOPICS[i % 4]} {i}" for i in range(BATCH + 5)]
    vectors = RemoteEmbedder("small", f"{gateway.url}/v1/", "secret").embed(texts)
    assert vectors.argmax(axis=1).tolist() == [i % 4 for i in range(len(texts))]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert [len(body["input"]) for body in gateway.asked] == [BATCH, 5]
    assert gateway.asked[0]["model"] == "small"
    assert gateway.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "answer", [b"{}", b"no", b'{"data": [{"index": 0, "embedding": ["x"]}]}', b'{"data": []}']
)
def test_other_answers_are_refused(gateway, answer: bytes) -> None:
    """What is no embedding of every text is the upstream's fault."""
    gateway.answer = lambda body: (200, {}, answer)
    with pytest.raises(UpstreamBroken):
        RemoteEmbedder("small", gateway.url).embed(["a"])
    gateway.answer = lambda body: (401, {}, b'{"error": {"message": "no key"}}')
    with pytest.raises(UpstreamError, match="no key"):
        RemoteEmbedder("small", gateway.url).embed(["a"])


def test_a_router_is_trained_with_it(chorus, gateway, tmp_path: Path) -> None:
    """`chorus train` with --embedder-url: the artefact names the model as the config will."""
    gateway.answer = _topics
    write_table(outcomes(200), tmp_path / "o.parquet")
    arguments = ("--outcomes", tmp_path / "o.parquet", "--out", tmp_path / "a")
    status, out, err = chorus(
        "train", "knn", *arguments, "--embedder", "small", "--embedder-url", gateway.url
    )
    assert (status, err) == (0, "")
    assert read_manifest(tmp_path / "a").embedder == "small"
    assert "router, quality 1" in out
    assert chorus("train", "knn", *arguments, "--embedder-url", gateway.url)[0] == 2
