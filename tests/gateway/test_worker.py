"""What a worker weighs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "transformers", "onnxruntime", "litellm", "numpy", "opentelemetry")
LOAD = f"""
import json, sys
from pathlib import Path
import gateway.worker, uvloop
from gateway.app import make_app
from protocol.settings import load_settings
make_app(load_settings(Path(sys.argv[1])), {{}})
status = Path("/proc/self/status").read_text()
rss_kb = int(status.split("VmRSS:")[1].split()[0])
print(json.dumps({{"rss_mb": rss_kb / 1024, "loaded": [name for name in {HEAVY!r} if name in sys.modules]}}))
"""


def test_light(tmp_path: Path) -> None:
    """A worker of OpenAI-compatible backends loads no machine learning and stays under 150 MB."""
    config = tmp_path / "config.yaml"
    config.write_text("models: {m: {openai: {base_url: 'http://127.0.0.1:9/v1', model: x}}}")
    told = subprocess.run(
        [sys.executable, "-c", LOAD, str(config)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    facts = json.loads(told.stdout)
    assert facts["loaded"] == []
    assert facts["rss_mb"] < 150
