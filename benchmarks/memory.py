"""Resident memory of each kind of process, in megabytes. Nothing is measured that does not run here.

    python -m benchmarks.memory [CONFIG]

CONFIG (default config/local.yaml) says what a routing worker, the embedder and the engine host load. Each
process is started alone, as `chorus serve` would start it, and read a second after it has become ready.
Unique memory (USS) is what one more such process costs; resident memory (RSS) counts
shared libraries in full, proportional memory (PSS) each process's part of them.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.run_dir import RunDir
from protocol.settings import Settings, load_settings

PLAIN = "models: {hosted: {openai: {base_url: 'http://127.0.0.1:9/v1', model: x}}}"
START_S = 300.0
SETTLE_S = 1.0


def memory_mb(pid: int) -> dict[str, float]:
    """RSS, PSS and USS of a process and its children, in MB (2**20 bytes)."""
    total = {"rss_mb": 0.0, "pss_mb": 0.0, "uss_mb": 0.0}
    for process in (pid, *_children(pid)):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            kb = int(rest.split()[0]) if rest.strip().endswith("kB") else 0
            if name == "Rss":
                total["rss_mb"] += kb / 1024
            if name == "Pss":
                total["pss_mb"] += kb / 1024
            if name in ("Private_Clean", "Private_Dirty"):
                total["uss_mb"] += kb / 1024
    return {name: round(value, 1) for name, value in total.items()}


def _children(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for one in told for child in (int(one), *_children(int(one)))]


def _measure(
    argv: Sequence[str], ready: Callable[[], bool], pass_fds: tuple[int, ...] = ()
) -> dict[str, float]:
    """Start a process, wait until it is ready, read its memory, end it."""
    process = subprocess.Popen([sys.executable, "-m", *argv], pass_fds=pass_fds)
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(argv)} did not become ready")
            time.sleep(0.2)
        time.sleep(SETTLE_S)
        return memory_mb(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _worker(config: Path, folder: Path) -> dict[str, float]:
    mark = RunDir(folder).ready_mark(config.stem)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        argv = ["gateway.worker", str(config), "--fd", str(listener.fileno())]
        argv += ["--run-dir", str(folder), "--name", config.stem, "--drain-s", "1"]
        return _measure(argv, mark.exists, pass_fds=(listener.fileno(),))


def _helper(module: str, config: Path, folder: Path) -> dict[str, float]:
    uds = folder / f"{module}.sock"

    def healthy() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(uds))
            except OSError:
                return False
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return client.recv(64).split()[1:2] == [b"200"]

    return _measure([module, str(config), "--uds", str(uds)], healthy)


def measure(config: Path, settings: Settings) -> dict[str, dict[str, float]]:
    """Memory of every kind of process that `settings`, read from `config`, needs; the plain worker always."""
    models = settings.models.values()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "plain.yaml"
        plain.write_text(PLAIN)
        table = {"worker, OpenAI-compatible backends only": _worker(plain, folder)}
        if settings.strategies:
            table[f"worker, {config.name}"] = _worker(config, folder)
        if any(model.embedder for model in models):
            table["embedder process"] = _helper("gateway.embedder_host", config, folder)
        if any(model.engine for model in models):
            table["engine host"] = _helper("engines", config, folder)
    return table


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description="Resident memory of each kind of process.")
    parser.add_argument("config", type=Path, nargs="?", default=Path("config/local.yaml"))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    table = measure(arguments.config, load_settings(arguments.config))
    for name, row in table.items():
        print(
            f"{name:45} {row['rss_mb']:8.1f} MB RSS {row['pss_mb']:8.1f} MB PSS {row['uss_mb']:8.1f} MB USS"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
