"""Drafting members against the plain loop, on SmolLM2 and its partners: `python -m benchmarks.spec_ensemble`.

The partners come from `python -m engines.partners tuned` and `… pruned`. One sequence at a time, greedy; the
two loops take turns prompt by prompt, so that whatever else the machine does meets both. Writes
benchmarks/results/spec_ensemble.{json,md}."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.asking import Asker, questions
from engines import preload
from engines.engine import EngineSpec, prepare_environment
from engines.host import FusionSpec, Host
from engines.templates import prompting
from engines.weights import Home
from ensembles.tokens.gac import GaC
from ensembles.tokens.spec_ensemble import SpecEnsemble

RESULTS = Path(__file__).parent / "results"
PAIRS = {
    # name: members with their weights, and the plans of γ that are tried
    "tuned + original": ({"tuned": 0.5, "smol": 0.5}, {"1, 1": (1, 1), "2, 2": (2, 2)}),
    "pruned + original": ({"pruned": 0.5, "smol": 0.5}, {"1, 1": (1, 1), "3, 1": (3, 1)}),
}


def main() -> int:
    """Run every pair and plan; print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spec_ensemble")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    preload.ensure()
    prepare_environment()
    home = Home.from_environ()
    folders = {
        "smol": home.weights / "smollm2-135m-instruct",
        "tuned": home.root / "partners" / "tuned",
        "pruned": home.root / "partners" / "pruned",
    }
    specs = [EngineSpec(name, folder, asked.dtype, 512, 0.25, 8) for name, folder in folders.items()]
    fusions, rows = [], []
    for pair, (members, plans) in PAIRS.items():
        names, weights = tuple(members), tuple(members.values())
        fusions.append(FusionSpec(f"{pair}/plain", names, weights, GaC()))
        fusions += [
            FusionSpec(f"{pair}/{plan}", names, weights, SpecEnsemble(drafts=drafts))
            for plan, drafts in plans.items()
        ]
    host = Host(specs, fusions)
    host.start()
    ask = Asker(host, dict.fromkeys(folders, prompting(folders["smol"])))
    prompts = [question.prompt for question in questions(asked.prompts)]

    def answer(model: str, n: int) -> tuple[str, int, float, float]:
        cpu = time.process_time()
        told = ask.send(model, prompts[n], max_tokens=asked.tokens).wait()
        return told.text, told.written, told.last_s, time.process_time() - cpu

    alone = {name: [answer(name, n)[0] for n in range(len(prompts))] for name in folders}
    for pair, (members, plans) in PAIRS.items():
        loops = {plan: f"{pair}/{plan}" for plan in ("plain", *plans)}
        for model in loops.values():
            answer(model, 0)  # prompts cached, kernels picked
        done = {plan: [] for plan in loops}  # type: dict[str, list[tuple[str, int, float, float]]]
        for n in range(len(prompts)):
            for plan, model in loops.items():
                done[plan].append(answer(model, n))
        first, second = members
        differ = sum(a != b for a, b in zip(alone[first], alone[second], strict=True)) / len(prompts)
        plain = done["plain"]
        for plan, answers in done.items():
            tokens, seconds, cpu = (sum(one[i] for one in answers) for i in (1, 2, 3))
            tally = asdict(host.tallies()[loops[plan]]) if plan != "plain" else None
            rows.append(
                {
                    "pair": pair,
                    "plan": plan,
                    "members_differ": differ,
                    "same_text": sum(a[0] == b[0] for a, b in zip(plain, answers, strict=True)),
                    "prompts": len(prompts),
                    "tokens": tokens,
                    "tokens_per_s": tokens / seconds,
                    "cpu_ms_per_token": 1000 * cpu / tokens,
                    "speedup": (sum(a[2] for a in plain) / sum(a[1] for a in plain)) * tokens / seconds,
                    "cpu_speedup": (sum(a[3] for a in plain) / sum(a[1] for a in plain)) * tokens / cpu,
                    "tally": tally,
                }
            )
            print(rows[-1], flush=True)
    host.stop()
    (RESULTS / "spec_ensemble.json").write_text(
        json.dumps(
            {"dtype": asked.dtype, "tokens": asked.tokens, "cores": os.cpu_count(), "rows": rows}, indent=1
        )
        + "\n"
    )
    lines = [
        "# spec-ensemble against the plain loop",
        "",
        f"`python -m benchmarks.spec_ensemble`: greedy, {asked.dtype}, one sequence at a time, GaC with weights ½, "
        f"{len(prompts)} prompts, at most {asked.tokens} tokens.",
        "",
        "| members | γ | members' texts differ | same text as plain | tokens/s | speed-up (clock) | CPU ms/token | "
        "speed-up (CPU) | drafts accepted | forwards per symbol |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tally = row["tally"]
        drafts = (
            f"{tally['accepted'] / tally['verified']:.1%} | {tally['forwards'] / tally['written']:.2f}"
            if tally
            else "– | 2"
        )
        lines.append(
            f"| {row['pair']} | {row['plan']} | {row['members_differ']:.0%} | {row['same_text']} of {row['prompts']} | "
            f"{row['tokens_per_s']:.1f} | {row['speedup']:.2f} | {row['cpu_ms_per_token']:.0f} | "
            f"{row['cpu_speedup']:.2f} | {drafts} |"
        )
    (RESULTS / "spec_ensemble.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
