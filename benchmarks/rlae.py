"""RLAE against its members and against fixed weights, on held-out questions: `python -m benchmarks.rlae`.

Trained by `python -m engines.rlae` (the folders are given as `--artefact NAME=FOLDER`). All answers are greedy, on the
real pair in float32; questions are those whose text's hash keeps them out of training. Intervals are percentile
bootstraps over questions, differences resampled with the same questions. Writes benchmarks/results/rlae.{json,md}."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

from engines import preload
from engines.engine import prepare_environment
from engines.host import FusionSpec
from engines.rlae import MEMBERS, QUERIES, SLOTS, School, served, tasks
from ensembles.tokens.gac import GaC
from outcomes.artefact import read_manifest
from outcomes.metrics import paired_bootstrap

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Answer, grade, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rlae")
    parser.add_argument("--artefact", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--questions", type=int, default=128)
    asked = parser.parse_args()
    preload.ensure()
    prepare_environment()
    artefacts = dict(pair.split("=", 1) for pair in asked.artefact)
    names = tuple(MEMBERS)
    fusions = [FusionSpec("gac", names, (1.0,) * len(names), GaC())]
    fusions += [served(Path(folder), name) for name, folder in artefacts.items()]
    held_out = tasks(QUERIES, held_out=True)
    chosen = held_out[:: max(1, len(held_out) // asked.questions)][: asked.questions]
    columns = [*names, "gac", *artefacts]
    scores = np.zeros((len(chosen), len(columns)))
    seconds = dict.fromkeys(columns, 0.0)
    school = School(fusions)
    try:
        for start in range(
            0, len(chosen), SLOTS
        ):  # in turn, so that whatever else the machine does meets all
            batch = chosen[start : start + SLOTS]
            for k, name in enumerate(columns):
                began = time.monotonic()
                texts = school.answers([(name, task) for task in batch])
                seconds[name] += time.monotonic() - began
                rewards = [task.grade(text) for task, text in zip(batch, texts, strict=True)]
                scores[start : start + len(batch), k] = rewards
    finally:
        school.close()
    against = scores - scores[:, [columns.index("gac")]]
    means, gains = paired_bootstrap(scores), paired_bootstrap(against)
    rows = [
        {
            "who": name,
            "right": mean.mean,
            "interval": [mean.low, mean.high],
            "over_gac": gain.mean,
            "over_gac_interval": [gain.low, gain.high],
            "seconds": round(seconds[name], 1),
        }
        for name, mean, gain in zip(columns, means, gains, strict=True)
    ]
    trained = {name: dict(read_manifest(Path(folder)).metrics) for name, folder in artefacts.items()}
    facts = {"questions": len(chosen), "cores": os.cpu_count(), "python": platform.python_version()}
    (RESULTS / "rlae.json").write_text(
        json.dumps({"facts": facts, "rows": rows, "trained": trained}, indent=2) + "\n"
    )
    lines = [
        "# RLAE on the real pair",
        "",
        f"`python -m benchmarks.rlae`: {len(chosen)} held-out questions of {QUERIES}, greedy, float32, "
        f"{facts['cores']} cores shared with other work. 95 % bootstrap intervals over questions.",
        "",
        "| | right | over gac with equal weights | seconds |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {mean.mean:.3f} ({mean.low:.3f} to {mean.high:.3f}) "
        f"| {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) | {seconds[name]:.0f} |"
        for name, mean, gain in zip(columns, means, gains, strict=True)
    ]
    lines += ["", "How the policies were trained (`python -m engines.rlae`):", ""]
    lines += [f"- `{name}`: {json.dumps(metrics)}" for name, metrics in trained.items()]
    text = "\n".join(lines) + "\n"
    (RESULTS / "rlae.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
