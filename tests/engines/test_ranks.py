"""A host of two ranks: it writes what a host of one writes, and neither rank outlives the other."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from engines import ranks
from engines.generation import Generation, Sampling
from engines.grammar import Grammar
from engines.inbox import Begin, Item, News
from engines.ranks import Follower, Leader
from protocol.settings import Settings
from tests.engines.conftest import FOLDERS, GEMMA, SMOL

if TYPE_CHECKING:
    from tests.engines.conftest import Asker

ROOT = Path(ranks.__file__).parents[1]
SMALL = {"dtype": "float32", "max_model_len": 256, "kv_cache_gib": 0.05, "max_running": 4}
CONFIG = {
    "models": {
        # Two ranks cannot share its nine heads: each computes it for itself.
        SMOL: {"engine": {"weights": FOLDERS[SMOL], **SMALL, "device": "cpu"}},
        GEMMA: {"engine": {"weights": FOLDERS[GEMMA], **SMALL, "tensor_parallel": 2}},
    },
    "strategies": {"duet": {"fuse": {"method": "gac", "members": {SMOL: 0.5, GEMMA: 0.5}}}},
}
BEGUN = ("The capital of France is", "Once upon a time, there was")
TOKENS = 8
LOADING_S = 240


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """The engine host as users run it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path_factory.mktemp("ranks") / "chorus.yaml"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    command = [sys.executable, "-m", "engines", str(config), "--port", str(port)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        config.with_name("log").open("wb") as log,
        subprocess.Popen(command, env=environ, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        try:
            until = time.monotonic() + LOADING_S
            while process.poll() is None and time.monotonic() < until:
                try:
                    client.get("/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.2)
            yield process, client
        finally:
            process.kill()
    # Behind what vLLM does to logging while it loads.
    assert "engine host ready on" in config.with_name("log").read_text(encoding="utf-8")


def _answer(client: httpx.Client, model: str, prompt: str, **asked: Any) -> str:
    told = client.post(
        "/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": TOKENS, **asked}
    )
    assert told.status_code == 200, told.text
    text: str = told.json()["choices"][0]["text"]
    return text


def _alone(ask: Asker, model: str, prompt: str) -> str:
    """What one process writes."""
    ids = tuple(tuple(ask.host.vocabs[member].encode_prompt(prompt)) for member in ask.host.members_of(model))
    return ask.send_ids(model, ids, max_tokens=TOKENS).result().text


def _others(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes that it started."""
    listed = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for children in listed for pid in children.read_text(encoding="ascii").split()]


def _runs(pid: int) -> bool:
    """Whether the process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.models
def test_two_ranks_write_what_one_writes(
    host: tuple[subprocess.Popen[bytes], httpx.Client], ask: Asker
) -> None:
    """Greedy float32 texts of a model in two parts, and of its fusion with one that is whole in both, are those of one
    process. Ranks draw the same where nobody gave a seed, and drop the same who left, else the host would end.

    All end together."""
    process, client = host
    for model, prompt in ((GEMMA, BEGUN[0]), ("duet", BEGUN[0]), ("duet", BEGUN[1])):
        alone = _alone(ask, model, prompt)
        assert alone.strip()
        assert _answer(client, model, prompt, temperature=0) == alone
    for model in (GEMMA, "duet"):
        _answer(client, model, BEGUN[1], temperature=1.0)
    form = {
        "type": "json_schema",
        "json_schema": {"name": "f", "strict": True, "schema": {"type": "boolean"}},
    }
    assert _answer(client, "duet", BEGUN[1], response_format=form) in ("true", "false")
    leaves = {"model": "duet", "prompt": BEGUN[1], "max_tokens": 200, "stream": True}
    with client.stream("POST", "/v1/completions", json=leaves) as stream:
        next(stream.iter_lines())
    assert _answer(client, "duet", BEGUN[0], temperature=0) == _alone(ask, "duet", BEGUN[0])
    others = _others(process)
    assert [pid for pid in others if _runs(pid)]
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    until = time.monotonic() + 30
    while any(_runs(pid) for pid in others):
        assert time.monotonic() < until, "a rank outlives rank 0"
        time.sleep(0.1)


def _through(*items: Item) -> list[Item]:
    """What a follower takes when rank 0 takes these."""
    pipe = BytesIO()
    ranks._write(pipe, ranks._Orders(1.5, 0, [ranks._sent(item) for item in items]))
    pipe.seek(0)
    orders = ranks._read(pipe, ranks._Orders)
    assert orders is not None

    def grammar(model: str, schema: Mapping[str, Any], strict: bool) -> Grammar:
        return Grammar(json.dumps(schema).encode(), strict, f"compiled for {model}")

    follower = Follower(grammar)
    follower.hear(orders)
    taken = [*follower.take(block=False)]
    assert follower.now == 1.5
    return taken


def test_a_follower_hears_what_rank_0_hears() -> None:
    """Every field of a request comes through, in order with what else came; a grammar is compiled anew."""
    asked = Sampling(
        5, 0.5, 0.9, 7, (b"\xff\n", b"stop"), b"\x00", 3, {"logit_bias": {17: -2.0}, "min_p": 0.1}
    )
    plain = Generation("a", "duet", ((1, 2), (3,)), asked, (0.25, 0.75), "Grüße?")
    bound = Generation("b", "duet", ((1,), (2,)), Sampling(grammar=Grammar(b'{"type": "null"}', True, None)))
    done: Future[Any] = Future()
    done.set_result([0.5, None])
    failed: Future[Any] = Future()
    failed.set_exception(OSError("no such file"))
    sink: queue.SimpleQueue[Any] = queue.SimpleQueue()
    first, drop, second, good, bad, end = _through(
        Begin(plain, sink.put), "c", Begin(bound, sink.put), News("a", done), News("b", failed), None
    )
    assert isinstance(first, Begin)
    assert first.generation == plain
    assert isinstance(second, Begin)
    assert second.generation.sampling.grammar == Grammar(b'{"type": "null"}', True, "compiled for duet")
    assert (drop, end) == ("c", None)
    assert isinstance(good, News)
    assert good.outcome.result() == [0.5, None]
    assert isinstance(bad, News)
    assert bad.outcome.exception()
    assert sink.empty()


def test_a_rank_that_chose_otherwise_ends() -> None:
    """Each step is compared with rank 0's before the next one."""
    leader = Leader(Settings.model_validate(CONFIG), 1)
    follower = Follower(lambda model, schema, strict: Grammar(b"", strict, None))
    for step, told in (([("a", [5])], True), ([("a", [6])], False)):
        leader.agree(([], step))
        follower.agree(([], step if told else [("a", [7])]))
        follower.hear(ranks._Orders(0.0, leader._choices, []))
        if told:
            follower.take(block=False)
    with pytest.raises(RuntimeError, match="other tokens than rank 0"):
        follower.take(block=False)
    leader.close()


def test_no_rank_outlives_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 hears of a rank that ended, and one whose rank 0 lets go of it ends by itself."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    lost: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    leader = Leader(Settings.model_validate(CONFIG), 2)
    leader.open(lost.put)
    leader._others[0].kill()
    assert "rank 1 ended with -9" in str(lost.get(timeout=30))
    leader.close()

    leader = Leader(Settings.model_validate(CONFIG), 2)
    leader.open(lost.put)
    leader.close()
    assert leader._others[0].returncode == 1
    assert lost.empty()
    assert not leader.rank.store.parent.exists()


def test_a_step_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that stands still, and reads nothing more, keeps rank 0 neither from hearing of it nor from ending."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ranks, "STEP_S", 1.0)
    monkeypatch.setattr(ranks, "END_S", 0.5)
    lost: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    leader = Leader(Settings.model_validate(CONFIG), 2)
    leader.open(lost.put)
    leader._others[0].send_signal(signal.SIGSTOP)
    much = Generation("a", "duet", ((1,) * 100_000, (2,)), Sampling())

    def step() -> None:
        leader.put(Begin(much, lambda event: None))
        with pytest.raises((OSError, ValueError)):  # broken, or closed
            leader.take(block=True)

    stuck = threading.Thread(target=step)
    stuck.start()
    assert isinstance(lost.get(timeout=30), TimeoutError)
    leader.close()
    stuck.join(30)
    assert not stuck.is_alive()
    assert [item.generation.id for item in leader.left() if isinstance(item, Begin)] == ["a"]
    assert leader._others[0].returncode == -signal.SIGKILL


def test_what_ranks_are_told_of_the_settings() -> None:
    """Engine models and fusions, as they were; nothing of other models."""
    other = {"openai": {"base_url": "https://example.org/v1", "model": "m", "api_key": "secret-secret"}}
    whole = {**CONFIG, "models": {**CONFIG["models"], "far": other}}
    told = ranks._loaded_by_engines(Settings.model_validate(whole))
    assert "secret" not in json.dumps(told)
    assert Settings.model_validate(told) == Settings.model_validate(CONFIG)
