"""What is measured: each target installs itself where it must, starts, and says where it answers and what
it counted."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.gateway.load import Server
from benchmarks.gateway.processes import Process, free_port, wait_for
from benchmarks.gateway.workload import KEY, MODEL

__all__ = [
    "COMPARED",
    "INPUT_USD",
    "OURS",
    "OUTPUT_USD",
    "ROOT",
    "TARGETS",
    "Bench",
    "Books",
    "Chorus",
    "Running",
    "Target",
    "Unavailable",
    "started",
]

ROOT = Path(__file__).parents[2]
INPUT_USD, OUTPUT_USD = 2e-6, 8e-6
EMBEDDER = "all-minilm-l6-v2"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}

# Pinned, so that a number can be had again. LiteLLM: the newest that installs and is not known to have been
# tampered with.
LITELLM = "1.106.2"
VLLM_ROUTER = "0.1.17"
PORTKEY = "1.15.2"


class Unavailable(Exception):
    """The machine cannot run the target; the message says why."""


@dataclass(frozen=True, slots=True)
class Books:
    """What a gateway says it has done since it started, to be compared with what the load generator knows."""

    requests: float
    input_tokens: float
    output_tokens: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Running:
    """A target that answers. `process` None: the upstream itself; `metrics` and `ledger` where it keeps books, if it
    does. What embedding costs is not in these sums: the load generator does not know it."""

    server: Server
    process: Process | None
    version: str
    metrics: str | None = None
    ledger: Path | None = None

    def books(self) -> dict[str, Books]:
        """What its books say now, by the name of the book."""
        told = {}
        if self.metrics is not None:
            told["metrics"] = self._counted(self.metrics)
        if self.ledger is not None:
            told["ledger"] = self._kept(self.ledger)
        return told

    def _counted(self, url: str) -> Books:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as page:
            text = page.read().decode()
        return Books(
            _total(text, "chorus_requests_total", 'outcome="ok"'),
            _total(text, "chorus_tokens_total", 'kind="input"'),
            _total(text, "chorus_tokens_total", 'kind="output"'),
            _total(text, "chorus_cost_usd_total", ""),
        )

    def _kept(self, path: Path) -> Books:
        if not path.exists():
            return Books(0, 0, 0, 0)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as ledger:
            (requests,) = ledger.execute("SELECT count(*) FROM requests WHERE outcome = 'ok'").fetchone()
            read, written, nano = ledger.execute(
                "SELECT total(prompt_tokens), total(completion_tokens), total(cost_nano) FROM calls "
                "WHERE kind = 'answer'"
            ).fetchone()
        return Books(requests, read, written, nano / 1e9)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a target needs to start: the upstream's port, the cores of the gateway and of the load, a scratch folder, a
    cache of peers."""

    upstream: int
    cores: set[int]
    load: set[int]
    scratch: Path
    cache: Path

    def process(
        self, name: str, argv: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        return Process(argv, cores=self.cores, log=self.scratch / f"{name}.log", env=env, cwd=cwd)


class Target(Protocol):
    """Something to send requests through."""

    name: str

    def running(self, bench: Bench) -> Iterator[Running]:
        """Run it for as long as the context lasts. Raises `Unavailable`."""
        ...


class Direct:
    """No gateway: the upstream itself, which is what the others are compared with."""

    name = "direct"

    def running(self, bench: Bench) -> Iterator[Running]:
        yield Running(Server(bench.upstream), None, "")


class Chorus:
    """Chorus itself, with all that a deployment has switched on: key, prices, accounting, ledger, metrics, decision
    headers. `without` switches off what can be; `keys` asks with a virtual key that has budgets and limits, kept in
    SQLite or in Redis; `routed` asks for a route, whose kNN router knows each text already, or, `fresh`, none."""

    def __init__(
        self,
        name: str,
        workers: int = 1,
        root: Path = ROOT,
        *,
        without: bool = False,
        keys: Literal["", "sqlite", "redis"] = "",
        routed: bool = False,
        fresh: bool = False,
        access_log: bool = False,
    ) -> None:
        self.name, self._workers, self._root = name, workers, root
        self._without, self._keys, self._routed, self._fresh = without, keys, routed, fresh
        self._access_log = access_log

    def running(self, bench: Bench) -> Iterator[Running]:
        folder = bench.scratch / self.name
        folder.mkdir()
        config, state = folder / "config.yaml", folder / "state"
        port, admin = free_port(), free_port()
        price = {"input_usd_per_token": INPUT_USD, "output_usd_per_token": OUTPUT_USD}
        upstream = {"base_url": f"http://127.0.0.1:{bench.upstream}/v1", "model": MODEL, "api_key": "sk-up"}
        server = {"port": port, "admin_port": admin, "workers": self._workers, "master_key": KEY}
        settings: dict[str, Any] = {
            "models": {MODEL: {"openai": upstream, "price": price}},
            "server": server,
            "state": {"folder": str(state)},
            "logging": {"access": self._access_log},
        }
        if self._without:
            del server["master_key"]
            settings["ledger"] = {"enabled": False}
        if self._routed:
            settings |= routed(settings["models"])
        with ExitStack() as stack:
            if self._keys == "redis":
                settings["redis"] = {"url": _redis(bench, folder, stack)}
                settings["keys"] = {"pepper": "0123456789abcdef" * 4}
            config.write_text(json.dumps(settings))  # JSON is YAML
            chorus = [sys.executable, "-c", "from gateway.cli import main; main()"]
            environ = {"PYTHONPATH": str(self._root)}
            key = _virtual_key(chorus, config, environ, self._root) if self._keys else KEY
            process = stack.enter_context(
                bench.process(self.name, [*chorus, "serve", str(config)], environ, self._root)
            )
            wait_for(f"http://127.0.0.1:{admin}/readyz", process, 60)
            commit = subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=self._root, capture_output=True, text=True
            )
            headers = {} if self._without else {"authorization": f"Bearer {key}"}
            yield Running(
                Server(port, headers, model="auto" if self._routed else MODEL, fresh=self._fresh),
                process,
                commit.stdout.strip() or "?",
                f"http://127.0.0.1:{admin}/metrics",
                None if self._without else state / "ledger.db",
            )


def routed(models: dict[str, Any]) -> dict[str, Any]:
    """Settings of a kNN route over two names of the same mock, by the artefact and the embedder that are shipped."""
    mock = models[MODEL]
    pool = dict.fromkeys(("smollm2-135m", "gemma3-270m"), mock)
    embedder = {"embedder": {"weights": "all-minilm-l6-v2-int8"}}
    route = {
        "method": "knn-router",
        "artefact": str(ROOT / "config/artefacts/knn-router"),
        "embedder": EMBEDDER,
        "default": "smollm2-135m",
        "embed_deadline_ms": 5000,
    }
    return {
        "models": {**models, **pool, EMBEDDER: embedder},
        "strategies": {"auto": {"route": route}},
    }


def _virtual_key(chorus: list[str], config: Path, environ: dict[str, str], root: Path) -> str:
    """A key with a budget and limits that the benchmark does not reach."""
    limits = [
        "--rpm",
        "100000000",
        "--tpm",
        "1000000000000",
        "--concurrent",
        "100000",
        "--budget",
        "day=1000000",
    ]
    done = subprocess.run(
        [*chorus, "keys", "create", "bench", "--config", str(config), *limits],
        capture_output=True, text=True, env={**os.environ, **environ}, cwd=root,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable(f"chorus keys create: {done.stderr[-500:]}")
    return done.stdout.strip()


def _redis(bench: Bench, folder: Path, stack: ExitStack) -> str:
    """A Redis of the benchmark's own, on the load generator's core; its processor time is not the gateway's."""
    socket = folder / "redis.sock"
    binary = shutil.which("redis-server")
    if binary is None:
        raise Unavailable("there is no redis-server on this machine")
    argv = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    stack.enter_context(Process(argv, cores=bench.load, log=folder / "redis.log", cwd=folder))
    ends = time.monotonic() + 10
    while not socket.exists() and time.monotonic() < ends:
        time.sleep(0.02)
    return f"unix://{socket}"


class LiteLLM:
    """LiteLLM's proxy: one worker, no database, logging off."""

    name = "litellm"

    def running(self, bench: Bench) -> Iterator[Running]:
        venv = _venv(bench.cache / "litellm", f"litellm[proxy]=={LITELLM}")
        config, port = bench.scratch / "litellm.yaml", free_port()
        upstream = f"http://127.0.0.1:{bench.upstream}/v1"
        model = {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}", "api_base": upstream, "api_key": "sk-up",
                "input_cost_per_token": INPUT_USD, "output_cost_per_token": OUTPUT_USD,
            },
        }  # fmt: skip
        settings = {
            "model_list": [model],
            "litellm_settings": {
                "set_verbose": False,
                "json_logs": False,
                "telemetry": False,
                "num_retries": 0,
            },
            "general_settings": {"master_key": KEY, "disable_spend_logs": True},
        }
        config.write_text(json.dumps(settings))
        env = {
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "NO_PROXY": "*",
        }
        argv = [
            str(venv / "bin/litellm"),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with bench.process(self.name, [*argv, "--num_workers", "1", "--telemetry", "False"], env) as process:
            wait_for(f"http://127.0.0.1:{port}/health/liveliness", process, 120)
            yield Running(Server(port, AUTHORIZED), process, LITELLM)


class VllmRouter:
    """vLLM's router, written in Rust: round robin over one worker, no key, no bookkeeping of tokens or
    cost."""

    name = "vllm-router"

    def running(self, bench: Bench) -> Iterator[Running]:
        venv = _venv(bench.cache / "vllm-router", f"vllm-router=={VLLM_ROUTER}")
        port, metrics = free_port(), free_port()
        argv = [
            str(venv / "bin/vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
            "--worker-urls", f"http://127.0.0.1:{bench.upstream}", "--prometheus-port", str(metrics),
            "--log-level", "error",
        ]  # fmt: skip
        with bench.process(self.name, argv, {"NO_PROXY": "*", "TOKIO_WORKER_THREADS": "1"}) as process:
            wait_for(f"http://127.0.0.1:{port}/health", process, 60)
            yield Running(Server(port), process, VLLM_ROUTER)


class Portkey:
    """Portkey's open gateway on node; it has no model table, so every request names its upstream."""

    name = "portkey"

    def running(self, bench: Bench) -> Iterator[Running]:
        folder = bench.cache / "portkey"
        start = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
        package = start.parents[1] / "package.json"
        if not package.exists() or json.loads(package.read_text())["version"] != PORTKEY:
            folder.mkdir(parents=True, exist_ok=True)
            wanted = f"@portkey-ai/gateway@{PORTKEY}"
            _install(
                [
                    "npm",
                    "install",
                    "--no-fund",
                    "--no-audit",
                    "--ignore-scripts",
                    "--prefix",
                    str(folder),
                    wanted,
                ]
            )
        port = free_port()
        upstream = f"http://127.0.0.1:{bench.upstream}/v1"
        env = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
        with bench.process(
            self.name, ["node", str(start), f"--port={port}", "--headless"], env, folder
        ) as process:
            wait_for(f"http://127.0.0.1:{port}/", process, 30)
            headers = {**AUTHORIZED, "x-portkey-provider": "openai", "x-portkey-custom-host": upstream}
            yield Running(Server(port, headers), process, PORTKEY)


class Floor:
    """The least a gateway on uvicorn can cost: raw ASGI in front of an HTTP client, no key, no
    bookkeeping."""

    def __init__(self, client: str) -> None:
        self.name = f"asgi+{client}"
        self._client = client

    def running(self, bench: Bench) -> Iterator[Running]:
        port = free_port()
        argv = [
            sys.executable, "-m", "benchmarks.gateway.floor", self._client,
            "--port", str(port), "--upstream", str(bench.upstream),
        ]  # fmt: skip
        with bench.process(self.name, argv, {"PYTHONPATH": str(ROOT)}, ROOT) as process:
            wait_for(f"http://127.0.0.1:{port}/livez", process, 30)
            yield Running(Server(port), process, "")


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Direct(), Chorus("chorus"), VllmRouter(), LiteLLM(), Portkey(),
        Chorus("chorus-2", workers=2), Chorus("chorus-off", without=True), Chorus("chorus-log", access_log=True),
        Chorus("chorus-keys", keys="sqlite"), Chorus("chorus-redis", keys="redis"),
        Chorus("chorus-knn", routed=True), Chorus("chorus-knn-fresh", routed=True, fresh=True),
        Floor("http1"), Floor("aiohttp"),
    )
}  # fmt: skip
COMPARED = ("direct", "chorus", "vllm-router", "litellm", "portkey", "asgi+http1")
"""Measured under every workload."""
OURS = (
    "chorus-2",
    "chorus-off",
    "chorus-keys",
    "chorus-redis",
    "chorus-log",
    "chorus-knn",
    "chorus-knn-fresh",
)
"""Chorus with something more, or less, switched on: measured under whole answers of 1 KB only."""


@contextmanager
def started(target: Target, bench: Bench) -> Iterator[Running]:
    """`target`, running. Raises `Unavailable` when it cannot be installed or does not come up."""
    try:
        yield from target.running(bench)
    except (RuntimeError, OSError) as error:
        raise Unavailable(str(error)) from error


def _venv(folder: Path, requirement: str) -> Path:
    """A virtual environment of its own that has `requirement`, through pip as the user has configured it."""
    mark = folder / "installed"
    if not mark.exists() or mark.read_text() != requirement:
        _install([sys.executable, "-m", "venv", "--clear", str(folder)])
        _install(
            [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--only-binary", ":all:", requirement]
        )
        mark.write_text(requirement)
    return folder


def _install(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(argv[:3])} …: {done.stderr[-500:]}")


def _total(exposition: str, name: str, wanted: str) -> float:
    """The sum of a counter's samples that carry the `wanted` label, those of the embedder excepted."""
    lines = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", exposition, re.MULTILINE)
    return sum(float(value) for labels, value in lines if wanted in labels and EMBEDDER not in labels)
