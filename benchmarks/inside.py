"""What methods that look into models bring to two small ones: `python -m benchmarks.inside`.

Trains a Copilot for SmolLM2 as it is, one together with a Pilot that learns as well, and a latent mixture of SmolLM2
and Gemma, each on the right answers of config/queries, and judges them on answers held out. Every training writes its
report to benchmarks/results; the page beside them, inside.md, is made of these. `--page` makes only the page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engines import train_copilot, train_mot
from engines.weights import Home

RESULTS = Path(__file__).parent / "results"
ROUNDS = ["--rounds", "54", "--drills", "6"]


def main() -> int:
    """Train, judge, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inside")
    parser.add_argument("--page", action="store_true", help="only the page, from the reports that are there")
    if not parser.parse_args().page:
        home = Home.from_environ().root
        where = ["--out", str(home / "copilots" / "stock"), "--report", str(RESULTS / "copilot-stock.json")]
        train_copilot.main([train_copilot.PILOT, "--tuned", "0", *ROUNDS, *where])
        train_copilot.main([train_copilot.PILOT, *ROUNDS, "--report", str(RESULTS / "copilot-joint.json")])
        train_mot.main(["--steps", "12", "--report", str(RESULTS / "mot.json")])
    copilots = {kind: _report(f"copilot-{kind}") for kind in ("stock", "joint")}
    (RESULTS / "inside.md").write_text(_page(copilots, _report("mot")), encoding="utf-8")
    return 0


def _report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _page(copilots: dict[str, dict[str, Any]], mot: dict[str, Any]) -> str:
    stock, plan = copilots["stock"], mot["plan"]
    names = {"stock": "as it is", "joint": "tuned together with it"}
    corrected = []
    for kind, report in copilots.items():
        gain, low, high = (100 * x for x in report["gain"])
        corrected.append(
            f"| {names[kind]} | {report['right_pilot']:.2%} | {report['right']['0.3']:.2%} | "
            f"{gain:+.2f} points ({low:+.2f} to {high:+.2f}) | {report['rmse_foreseen']:.5f} | "
            f"{report['rmse_mean']:.5f} | {report['rmse_none']:.5f} |"
        )
    mixed = [
        f"| {name} | {mot['alone'][m]:.4f} | {mot['mixed'][m]:.4f} | {mot['likelier'][m]} of {mot['answers']} |"
        for m, name in enumerate(mot["members"])
    ]
    choices = " and ".join(
        f"{name} for {s:.0%}" for name, s in zip(mot["members"], mot["share"], strict=True)
    )
    return f"""# Methods that look into models

`python -m benchmarks.inside`. One run of each training, seed 0, on a shared machine. The texts are right answers to the
questions of config/queries, every eighth question held out. Many of these answers are SmolLM2's own greedy words, which
it foresees as it is and less so once it is tuned on other models' words as well.

## transformer-copilot

SmolLM2-135M, a Copilot of {stock["plan"]["layers"]} layers and {stock["plan"]["size"]} dimensions, the
{stock["plan"]["kept"]} likeliest symbols and the one that came; {stock["answers"]} answers held out,
{stock["tokens"]} tokens, fed as they are while the Copilot reads its own corrections.
Errors are root mean squares over these symbols; the interval is over answers.

| Pilot | next token right | with the Copilot, λ = 0.3 | gain (95 % interval) | error, Copilot | mean error | none |
|---|---|---|---|---|---|---|
{_lines(corrected)}

{_lines([f"- The Pilot {names[kind]}: {_verdict(report)}" for kind, report in copilots.items()])}

## mot

{plan["steps"]} steps of {plan["batch"]} answers, {plan["points"]} stacks, {plan["size"]} dimensions;
{mot["answers"]} answers held out. Loss in nats a token of the writer's own.

| writer | alone (R = 0) | with the mixture | answers that got likelier |
|---|---|---|---|
{_lines(mixed)}

Nats a byte with the mixture: {mot["routed"]:.4f} where the router chooses the writer, {mot["best_single"]:.4f}
with the better single writer, {mot["oracle"]:.4f} with the better one of each answer. The router chose
{choices} of them.
Whether answers become right more often was not measured, nor how much of this a writer that sees only its own thoughts
(K = 1) would learn: answers of this set are short and alike, and their manner alone can be learnt. So few steps and
answers show that it learns, not what it could come to.
"""


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _verdict(report: dict[str, Any]) -> str:
    """What the figures allow to say."""
    _, low, high = report["gain"]
    said = "no gain or loss that the answers held out could show"
    if low > 0:
        said = "the next token is right more often"
    elif high < 0:
        said = "the next token is right *less* often"
    beats = "better" if report["rmse_foreseen"] < report["rmse_mean"] else "no better"
    none = "better" if report["rmse_foreseen"] < report["rmse_none"] else "no better"
    note = f" This report was {report['note']}." if "note" in report else ""
    return f"{said}; errors are foreseen {beats} than by the mean error, and {none} than by expecting none.{note}"


if __name__ == "__main__":
    raise SystemExit(main())
