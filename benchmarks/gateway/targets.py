"""What is measured: each target installs itself where it must, starts, and says where it answers and what
it counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.gateway.load import Server
from benchmarks.gateway.processes import Process, free_port, wait_for
from benchmarks.gateway.workload import KEY, MODEL

__all__ = [
    "DEFAULT",
    "INPUT_USD",
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
    """What a gateway says it has done since it started."""

    requests: float
    input_tokens: float
    output_tokens: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Running:
    """A target that answers. `process` None: the upstream itself; `metrics` where it keeps books, if it
    does."""

    server: Server
    process: Process | None
    version: str
    metrics: str | None = None

    def books(self) -> Books | None:
        """Read its counters; None where it has none that we know."""
        if self.metrics is None:
            return None
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            self.metrics, timeout=10
        ) as page:
            text = page.read().decode()
        return Books(
            _total(text, "chorus_requests_total", 'outcome="ok"'),
            _total(text, "chorus_tokens_total", 'kind="input"'),
            _total(text, "chorus_tokens_total", 'kind="output"'),
            _total(text, "chorus_cost_usd_total", ""),
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """What a target needs to start: the upstream's port, the gateway's cores, a scratch folder, a cache of
    peers."""

    upstream: int
    cores: set[int]
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
    """Chorus itself, with all that a deployment has switched on: key, prices, accounting, metrics,
    decision headers."""

    def __init__(self, name: str, workers: int = 1, root: Path = ROOT) -> None:
        self.name, self._workers, self._root = name, workers, root

    def running(self, bench: Bench) -> Iterator[Running]:
        config = bench.scratch / f"{self.name}.yaml"
        port, admin = free_port(), free_port()
        settings = {
            "models": {
                MODEL: {
                    "openai": {
                        "base_url": f"http://127.0.0.1:{bench.upstream}/v1",
                        "model": MODEL,
                        "api_key": "sk-up",
                    },
                    "price": {"input_usd_per_token": INPUT_USD, "output_usd_per_token": OUTPUT_USD},
                }
            },
            "server": {"port": port, "admin_port": admin, "workers": self._workers, "master_key": KEY},
            "logging": {"access": False},
        }
        config.write_text(json.dumps(settings))  # JSON is YAML
        argv = [sys.executable, "-c", "from gateway.cli import main; main()", "serve", str(config)]
        with bench.process(self.name, argv, {"PYTHONPATH": str(self._root)}, self._root) as process:
            wait_for(f"http://127.0.0.1:{admin}/readyz", process, 30)
            commit = subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=self._root, capture_output=True, text=True
            )
            version = commit.stdout.strip() or "?"
            yield Running(Server(port, AUTHORIZED), process, version, f"http://127.0.0.1:{admin}/metrics")


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
        Direct(), Chorus("chorus"), Chorus("chorus-2", workers=2), VllmRouter(), LiteLLM(), Portkey(),
        Floor("http1"), Floor("aiohttp"),
    )
}  # fmt: skip
DEFAULT = ("direct", "chorus", "vllm-router", "litellm", "portkey")


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


def _total(exposition: str, name: str, label: str) -> float:
    """The sum of a counter's samples that carry `label`."""
    lines = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", exposition, re.MULTILINE)
    return sum(float(value) for labels, value in lines if label in labels)
