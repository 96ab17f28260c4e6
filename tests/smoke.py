"""Call every name of a running `make serve` as its user would, with the OpenAI SDK, and show what each decision did.

    make smoke                     # or: python tests/smoke.py --url http://127.0.0.1:8080/v1

Prints each answer, who answered and what it cost, and exits with 1 if any part is missing. On committed prompts it
shows that `duet` says what neither member says alone, that `auto` sends prompts to both models, that `cascade` accepts
one answer and escalates another, and that `vote` had at least three distinct samples to choose from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.table import Table

MODELS = ("smollm2-135m", "gemma3-270m")
STRATEGIES = ("auto", "cascade", "duet", "vote")
EMBEDDER = "all-minilm-l6-v2"
PROMPTS = json.loads((Path(__file__).parent / "smoke_prompts.json").read_text())


@dataclass(frozen=True, slots=True)
class Said:
    """One answer as the caller saw it."""

    text: str
    strategy: str
    members: str
    cost_usd: float
    pieces: int
    decision: dict[str, Any]


def ask(client: OpenAI, model: str, prompt: str, *, stream: bool = False, **more: Any) -> Said:
    """One chat completion, explained."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 32,
        "extra_body": {"chorus": {"explain": True}},
        **more,
    }
    if not stream:
        raw = client.chat.completions.with_raw_response.create(**body)
        answer = raw.parse()
        explained = (answer.model_extra or {})["chorus"]
        cost = float(raw.headers["x-chorus-cost-usd"])
        assert abs(cost - explained["cost_usd"]) < 1e-9, "the header and the explanation name different costs"
        text, pieces = answer.choices[0].message.content or "", 1
    else:
        raw = client.chat.completions.with_raw_response.create(**body, stream=True)
        deltas, explained = [], {}
        for chunk in raw.parse():
            deltas += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            explained = (chunk.model_extra or {}).get("chorus", explained)
        text, pieces, cost = "".join(deltas), len(deltas), float(explained["cost_usd"])
    headers = raw.headers
    assert headers["x-request-id"], "no x-request-id"
    assert cost > 0, "an answer without a price"
    return Said(text, headers["x-chorus-strategy"], headers["x-chorus-model"], cost, pieces, explained)


class Smoke:
    """Runs the checks, keeps their verdicts, and goes on after a failure so that all of them are seen."""

    def __init__(self, client: OpenAI) -> None:
        self.client = client
        self.console = Console()
        self.table = Table(
            "name", "stream", "who answered", "cost USD", "answer", title="Every name, both ways"
        )
        self.failed: list[str] = []

    def check(self, what: str, holds: bool, shown: str = "") -> None:
        self.console.print(
            f"{'[green]ok[/]  ' if holds else '[red]MISSING[/]'} {what} {shown}", highlight=False
        )
        if not holds:
            self.failed.append(what)

    def run(self) -> int:
        self.lists_names()
        self.answers_by_every_name()
        self.duet_differs_from_its_members()
        self.auto_uses_both_models()
        self.cascade_accepts_and_escalates()
        self.vote_has_distinct_samples()
        self.embeds()
        self.console.print(
            "[red]smoke: " + "; ".join(self.failed) if self.failed else "[green]smoke: all parts present"
        )
        return 1 if self.failed else 0

    def lists_names(self) -> None:
        listed = {model.id for model in self.client.models.list()}
        self.check("/v1/models lists every name", {*MODELS, *STRATEGIES} <= listed, ", ".join(sorted(listed)))

    def answers_by_every_name(self) -> None:
        for name in (*MODELS, *STRATEGIES):
            for stream in (False, True):
                said = ask(self.client, name, PROMPTS["tour"], stream=stream)
                expected = "direct" if name in MODELS else name
                shown = said.text.strip().replace("\n", " ⏎ ")[:60]
                self.table.add_row(name, str(stream), said.members, f"{said.cost_usd:.3g}", shown)
                if not said.text.strip() or said.strategy != expected:
                    self.check(f"{name} answers (stream={stream})", False, repr(said))
                if name == "duet" and stream:
                    self.check("duet streams token by token", said.pieces >= 5, f"{said.pieces} pieces")
        self.console.print(self.table)

    def duet_differs_from_its_members(self) -> None:
        texts = {
            name: ask(self.client, name, PROMPTS["duet"], temperature=0).text for name in (*MODELS, "duet")
        }
        for name, text in texts.items():
            self.console.print(f"  {name:13} {text!r}", highlight=False, markup=False)
        distinct = len({text.strip() for text in texts.values()}) == 3
        self.check("duet's greedy text differs from both members'", distinct)

    def auto_uses_both_models(self) -> None:
        chosen = {prompt: ask(self.client, "auto", prompt).members for prompt in PROMPTS["auto"]}
        for prompt, model in chosen.items():
            self.console.print(f"  {model:13} ← {prompt!r}", highlight=False, markup=False)
        self.check("auto sends some prompts to each model", set(chosen.values()) == set(MODELS))

    def cascade_accepts_and_escalates(self) -> None:
        said = {prompt: ask(self.client, "cascade", prompt, temperature=0) for prompt in PROMPTS["cascade"]}
        for answer in said.values():
            self.console.print(
                f"  {answer.members:13} {answer.decision['decision']}", highlight=False, markup=False
            )
        self.check(
            "cascade accepts one and escalates one",
            {answer.members for answer in said.values()} == set(MODELS),
        )

    def vote_has_distinct_samples(self) -> None:
        samples = ask(self.client, "vote", PROMPTS["vote"]).decision["decision"]["samples"]
        texts = {sample["text"] for sample in samples}
        self.check(
            "vote's trace has at least 3 distinct samples", len(texts) >= 3, f"{len(texts)} of {len(samples)}"
        )

    def embeds(self) -> None:
        vectors = self.client.embeddings.create(model=EMBEDDER, input=["a cat", "a kitten", "a tax form"])
        cat, kitten, form = (item.embedding for item in vectors.data)
        near, far = (sum(x * y for x, y in zip(cat, other, strict=True)) for other in (kitten, form))
        self.check("embeddings put a cat nearer to a kitten", near > far, f"{near:.3f} > {far:.3f}")


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    url = os.environ.get("CHORUS_URL", "http://127.0.0.1:8080/v1")
    arguments.add_argument("--url", default=url, help="up to and including /v1")
    arguments.add_argument("--key", default=os.environ.get("CHORUS_MASTER_KEY", "unused"))
    given = arguments.parse_args()
    if not given.url.rstrip("/").endswith("/v1"):
        arguments.error(f"--url goes up to and including /v1, as {url}; got {given.url}")
    return Smoke(OpenAI(base_url=given.url, api_key=given.key, max_retries=0, timeout=300)).run()


if __name__ == "__main__":
    sys.exit(main())
