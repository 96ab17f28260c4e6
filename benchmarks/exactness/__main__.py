"""The command: ask the host, write the same again plainly, compare; in slices, which find what earlier ones did."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from math import exp
from pathlib import Path
from typing import Any

from benchmarks.asking import Asker, Kept, questions
from benchmarks.exactness.plain import Plainly, PlainText
from benchmarks.exactness.report import page
from benchmarks.lineup import Entry, Lineup, lineup
from benchmarks.machine import machine, revision
from engines import preload
from engines.assemble import fusion_spec
from engines.byte_vocab import ByteVocab
from engines.embedding_rows import EmbeddingRows
from engines.engine import prepare_environment
from engines.host import FusionSpec, Host
from engines.templates import Prompting
from engines.weights import Home
from ensembles.spans.base import SpanFusion
from ensembles.tokens.base import Search
from ensembles.tokens.etr import ETR
from outcomes.collect import Prompt

RESULTS = Path(__file__).parent.parent / "results"
LIKELIEST = 32
"""Symbols of each step whose probabilities are compared."""
AT_ONCE = 16
WRITERS = 8
"""Questions that are written plainly at a time."""
IDENTITY = 16
"""Questions that copies of one model are asked."""
COPIES: dict[str, dict[str, Any]] = {
    "abe": {"beams": 1},  # a wider beam finds likelier texts than the greedy one
    "eva": {"projection": None},  # the kept one belongs to the pair
}
"""Options under which copies of one model must write its greedy text, where the configured ones will not do."""
LEARNT = {"etr", "transformer-copilot", "mot"}
"""Methods that learnt something of their members, of which copies of one model know nothing: their degenerate cases
are in tests/engines/."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is compared. `tokens` an answer, `compared` prompts a fusion on which its text is no member's
    (`spans`: of a fusion in spans), `asked` prompts to find those, `drafted` prompts
    on which drafting is compared."""

    tokens: int = 12
    asked: int = 272
    compared: int = 50
    spans: int = 20
    drafted: int = 200


class OutOfTime(Exception):
    """The slice is over."""


def main() -> int:
    """Exit status 1 where something differs, 2 where a further slice is needed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after so many; run it again"
    )
    parser.add_argument("--fusions", default="", help="of benchmarks/fusions.yaml; all by default")
    parser.add_argument("--without", default="", help="of these, leave out")
    parser.add_argument("--quick", action="store_true", help="a few prompts, 8 tokens")
    parser.add_argument("--prompts", type=int, default=50, help="on which a fusion is compared")
    parser.add_argument("--drafted", type=int, default=200, help="prompts on which drafting is compared")
    parser.add_argument("--kept", type=Path, help="where slices leave what they found")
    parser.add_argument("--out", type=Path, default=RESULTS / "exactness.json", help="and .md beside it")
    asked = parser.parse_args()
    plan = replace(Plan(), compared=asked.prompts, spans=2 * asked.prompts // 5, drafted=asked.drafted)
    if asked.quick:
        plan = Plan(6, 4, 3, 2, 4)
    preload.ensure()
    prepare_environment()
    team = telling(lineup("float32"))
    names = asked.fusions.split(",") if asked.fusions else list(team.entries)
    team = team.only([name for name in names if name not in asked.without.split(",")])
    kept = Kept(asked.kept or Home.from_environ().root / "benchmarks" / "exactness.jsonl")
    begun = time.monotonic()
    run = Run(team, plan, kept, begun + asked.seconds)
    try:
        done = run.write_plainly(begun + asked.seconds / 2)
        run.ask()
    except OutOfTime:
        done = False
    result = {"machine": machine(), "complete": done, **run.result()}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    asked.out.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))
    return 2 if not done else int(not passed(result))


def passed(result: Mapping[str, Any]) -> bool:
    """Whether nothing differs but by rounding."""
    return (
        all(row["different"] == 0 for row in result["against_plain_loops"])
        and all(row["equal"] + row["near_ties"] == row["prompts"] for row in result["drafting"])
        and all(row["equal"] == row["prompts"] for row in result["identity"])
    )


class Run:
    """What was found, and what is still to be found until `deadline` (of the monotonic clock)."""

    def __init__(self, team: Lineup, plan: Plan, kept: Kept, deadline: float) -> None:
        self._team, self._plan, self._kept, self._deadline = team, plan, kept, deadline
        self._questions = questions(plan.asked)
        self._drafted = questions(plan.drafted)
        self._code = revision("engines", "ensembles")
        self._known = [name for name, entry in team.entries.items() if Plainly.knows(entry)]

    # ── keys: what a found value depends on ─────────────────────────────────────────────────────────────────

    def _answer(self, name: str, question: Prompt, code: str = "") -> str:
        settled = self._team.entries[name].settled
        return f"answer/{name}/{settled}/{self._plan.tokens}/{code or self._code.digest}/{question.id}"

    def _plain(self, name: str, question: Prompt) -> str:
        settled = self._team.entries[name].settled if name in self._team.entries else "alone"
        return f"plain/{name}/{settled}/{self._plan.tokens}/{question.id}"

    def _set(self, kind: str, name: str, code: str = "") -> str:
        prompts = IDENTITY if kind == "identity" else self._plan.drafted
        settled = self._team.entries[name].settled
        return f"{kind}/{name}/{settled}/{self._plan.tokens}/{prompts}/{code or self._code.digest}"

    # ── the plain part ──────────────────────────────────────────────────────────────────────────────────────

    def write_plainly(self, until: float) -> bool:
        """Every fusion's text, question by question, since the plain models remember within one, and some questions at
        a time, until each fusion has enough texts that are no member's. False where it was not done `until` then (of
        the monotonic clock)."""
        plainly = Plainly({name: spec.folder for name, spec in self._team.engines.items()})
        vocabs = {name: ByteVocab.load(spec.folder) for name, spec in self._team.engines.items()}
        templates = self._team.prompts
        questions = iter(self._questions)
        failed: list[BaseException] = []

        def write() -> None:
            plainly.together.join()
            try:
                while not failed and (question := next(questions, None)) is not None:
                    self._write(plainly, question, vocabs, templates, until)
            except OutOfTime:
                pass
            except BaseException as error:  # noqa: BLE001  raised below
                failed.append(error)
            finally:
                plainly.together.leave()

        threads = [threading.Thread(target=write, daemon=True) for _ in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return next(questions, None) is None and time.monotonic() < until

    def _write(
        self,
        plainly: Plainly,
        question: Prompt,
        vocabs: Mapping[str, ByteVocab],
        templates: Mapping[str, Prompting],
        until: float,
    ) -> None:
        """What is still needed of one question. Raises `OutOfTime`."""
        wanted = [n for n in self._known if len(self._chosen(n)) < self._enough(n)]
        missing = [n for n in wanted if self._plain(n, question) not in self._kept]
        members = dict.fromkeys(m for n in missing for m in self._team.entries[n].spec.members)
        messages = [{"role": "user", "content": question.prompt}]
        prompts = {
            name: vocabs[name].encode_prompt(templates[name].render(messages).text) for name in members
        }
        for name in members:
            if (key := self._plain(name, question)) not in self._kept:
                self._kept.keep(key, plainly.alone(name, prompts[name], self._plan.tokens).hex())
        for name in missing:
            if time.monotonic() > until:
                raise OutOfTime
            entry = self._team.entries[name]
            wrote = plainly.write(entry, [prompts[m] for m in entry.spec.members], self._plan.tokens)
            self._kept.keep(self._plain(name, question), wrote.as_json())
        plainly.forget(prompts)
        if missing:
            print(f"plain: {question.id}, {', '.join(missing)}", flush=True)

    def _chosen(self, name: str) -> list[Prompt]:
        """The first questions on which the fusion's text, written plainly, is no member's."""
        return self._qualified(name)[: self._enough(name)]

    def _qualified(self, name: str) -> list[Prompt]:
        """All of them."""
        found = []
        for question in self._questions:
            if self._plain(name, question) not in self._kept:
                continue
            ours = PlainText.from_json(self._kept[self._plain(name, question)]).text
            members = self._team.entries[name].spec.members
            theirs = [bytes.fromhex(self._kept[self._plain(m, question)]) for m in members]
            # What is written in spans may be longer.
            if not any(ours[: len(text)] == text for text in theirs):
                found.append(question)
        return found

    def _enough(self, name: str) -> int:
        """On how many questions it is compared."""
        spans = isinstance(self._team.entries[name].spec.fusion, SpanFusion)
        return self._plan.spans if spans else self._plan.compared

    # ── the host's part ─────────────────────────────────────────────────────────────────────────────────────

    def ask(self) -> None:
        """Everything that needs the engines."""
        entries, engines = self._team.entries, self._team.engines
        copies = [
            n
            for n, e in entries.items()
            if e.method.id not in LEARNT and self._set("identity", n) not in self._kept
        ]
        drafts = [n for n in self._team.rules_alone() if self._set("drafting", n) not in self._kept]
        asked = [n for n in self._known if any(self._answer(n, q) not in self._kept for q in self._chosen(n))]
        if not (copies or drafts or asked):
            return
        self._check_time()
        fusions = [entry.spec for entry in entries.values()] + [_twice(entries[name]) for name in copies]
        host = Host(list(engines.values()), fusions)
        host.start()
        try:
            asker = Asker(host, self._team.prompts)
            for name in asked:
                self._ask(asker, name)
            for name in copies:
                self._copies(asker, name)
            for name in drafts:
                self._draft(asker, name)
        finally:
            host.stop()

    def _ask(self, asker: Asker, name: str) -> None:
        """The answers to the chosen questions, with the distributions; to the first of them also as a client gets
        them, who asks for none."""
        short = {"max_tokens": self._plan.tokens, "stops": (), "before": b""}
        told = not isinstance(self._team.entries[name].spec.fusion, SpanFusion | Search)
        whole = {**short, "top_logprobs": LIKELIEST} if told else short
        chosen = self._chosen(name)
        for start in range(0, len(chosen), AT_ONCE):
            self._check_time()
            some = [q for q in chosen[start : start + AT_ONCE] if self._answer(name, q) not in self._kept]
            answers = list(asker.all(name, [(q.prompt, whole) for q in some]))
            both = told and not start
            quick = list(asker.all(name, [(q.prompt, short) for q in some])) if both else [None] * len(some)
            for question, answer, client in zip(some, answers, quick, strict=True):
                self._kept.keep(
                    self._answer(name, question),
                    {
                        "text": answer.text,
                        "short_cut": None if client is None else client.text,
                        "steps": [[(t.hex(), logp) for t, logp in one.top] for one in answer.tokens],
                        "symbols": [one.token.hex() for one in answer.tokens],
                        "code": self._code.digest,
                        "commit": self._code.commit,
                    },
                )
        print(self._row(name, self._code.digest), flush=True)

    def _draft(self, asker: Asker, name: str) -> None:
        """Drafted and plain texts, symbol by symbol."""
        self._check_time()
        asked = [
            (q.prompt, {"max_tokens": self._plan.tokens, "top_logprobs": 2, "stops": (), "before": b""})
            for q in self._drafted
        ]
        plain = list(asker.all(self._team.rules_alone()[name], asked))
        before = asker.host.tallies()[name]
        drafted = list(asker.all(name, asked))
        after = asker.host.tallies()[name]
        alone = [
            list(asker.all(m, [(q, {**s, "top_logprobs": None}) for q, s in asked]))
            for m in asker.host.members_of(name)
        ]
        equal = ties = 0
        for ours, theirs in zip(drafted, plain, strict=True):
            a, b = ([one.token for one in answer.tokens] for answer in (ours, theirs))
            if a == b:
                equal += 1
                continue
            at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
            top = theirs.tokens[min(at, len(b) - 1)].top
            ties += len(top) > 1 and top[0][1] - top[1][1] < 1e-3
        told = self._set("drafting", name)
        self._kept.keep(
            told,
            {
                "fusion": name,
                "commit": self._code.commit,
                "prompts": len(asked),
                "equal": equal,
                "near_ties": ties,
                "symbols": sum(len(answer.tokens) for answer in drafted),
                "members_differ": sum(a.text != b.text for a, b in zip(alone[0], alone[-1], strict=True)),
                "neither": sum(d.text not in {one[i].text for one in alone} for i, d in enumerate(drafted)),
                "accepted": (after.accepted - before.accepted) / max(1, after.verified - before.verified),
                "forwards_per_symbol": (after.forwards - before.forwards)
                / max(1, after.written - before.written),
            },
        )
        print(self._kept[told], flush=True)

    def _copies(self, asker: Asker, name: str) -> None:
        """Two members that are one model."""
        self._check_time()
        model = self._team.entries[name].spec.members[0]
        asked = [
            (q.prompt, {"max_tokens": self._plan.tokens, "stops": (), "before": b""})
            for q in self._questions[:IDENTITY]
        ]
        twice, once = list(asker.all(f"{name}=twice", asked)), list(asker.all(model, asked))
        equal = sum(a.text == b.text for a, b in zip(twice, once, strict=True))
        self._kept.keep(
            self._set("identity", name),
            {
                "fusion": name,
                "commit": self._code.commit,
                "model": model,
                "prompts": len(asked),
                "equal": equal,
            },
        )
        print(self._kept[self._set("identity", name)], flush=True)

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime

    # ── what was found ──────────────────────────────────────────────────────────────────────────────────────

    def _rows(self, name: str) -> list[dict[str, Any]]:
        """One for each state of the code that was asked, the present one first."""
        codes = dict.fromkeys((self._code.digest, *reversed(self._kept.part("answer", name, -2))))
        return [row for code in codes if (row := self._row(name, code))["compared"]]

    def _row(self, name: str, code: str) -> dict[str, Any]:
        both = [q for q in self._qualified(name) if self._answer(name, q, code) in self._kept]
        answers = [self._kept[self._answer(name, q, code)] for q in both]
        spans = isinstance(self._team.entries[name].spec.fusion, SpanFusion)
        found = []
        for question, heard in zip(both, answers, strict=True):
            wrote = PlainText.from_json(self._kept[self._plain(name, question)])
            found.append(one := compared(heard, wrote, in_spans=spans))
            if one["verdict"] == "different":
                print(f"{name}, {question.id}: {heard['text']!r} and not {wrote.text!r}")
        quick = [one for one in answers if one["short_cut"] is not None]
        differences = [one["difference"] for one in found if one["difference"] is not None]
        return {
            "fusion": name,
            "method": self._team.entries[name].method.id,
            "commit": answers[0]["commit"] if answers else self._code.commit,
            "short_cut_asked": len(quick),
            "short_cut_changes": sum(one["text"] != one["short_cut"] for one in quick),
            "compared": len(found),
            "equal": sum(one["verdict"] == "equal" for one in found),
            "near_ties": sum(one["verdict"] == "near tie" for one in found),
            "different": sum(one["verdict"] == "different" for one in found),
            "distributions": sum(one["steps"] for one in found),
            "max_difference": max(differences, default=None),
        }

    def result(self) -> dict[str, Any]:
        """Rows of all that is known."""
        return {
            "dtype": "float32",
            "tokens": self._plan.tokens,
            "likeliest": LIKELIEST,
            "commit": self._code.commit,
            "against_plain_loops": [row for name in self._known for row in self._rows(name)],
            "drafting": self._found("drafting", self._team.rules_alone()),
            "identity": self._found("identity", self._team.entries),
            "without_plain_loop": sorted(self._team.entries.keys() - set(self._known)),
            "absent": dict(self._team.absent),
        }

    def _found(self, kind: str, names: Iterable[str]) -> list[dict[str, Any]]:
        """Of each the values of the present code, or else those measured last."""
        found = []
        for name in names:
            codes = (self._code.digest, *reversed(self._kept.part(kind, name, -1)))
            keys = [self._set(kind, name, code) for code in codes]
            found += [self._kept[key] for key in keys if key in self._kept][:1]
        return found


def compared(heard: Mapping[str, Any], wrote: PlainText, *, in_spans: bool) -> dict[str, Any]:
    """Verdict on a text, and the largest difference of probabilities over the steps on the same text."""
    ours = heard["text"].encode()
    theirs = wrote.text.decode(errors="ignore").encode()
    if in_spans:  # one ends within a span, the other behind it
        ours, theirs = ours[: len(theirs)], theirs[: len(ours)]
    unsure = wrote.sure < len(wrote.text)
    same = ours[: wrote.sure] == theirs[: wrote.sure]
    verdict = "equal" if ours == theirs else "near tie" if unsure and same else "different"
    largest, count = 0.0, 0
    for step, symbol, fused in zip(heard["steps"], heard["symbols"], wrote.steps, strict=False):
        largest = max(largest, *(abs(exp(logp) - fused.get(bytes.fromhex(text), 0.0)) for text, logp in step))
        count += 1
        if max(fused, key=fused.__getitem__) != bytes.fromhex(symbol):
            break
    return {"verdict": verdict, "steps": count, "difference": largest if count else None}


def telling(team: Lineup) -> Lineup:
    """Without the shipped fusions whose texts are nearly always one member's: benchmarks/fusions.yaml has others of
    their methods. ETR's shipped expert token is called before the first word or never, so "etr-words" has one that is
    called where the meta model would write a certain word."""
    entries = {name: entry for name, entry in team.entries.items() if name not in ("routed", "corrected")}
    if (like := entries.pop("expert", None)) is not None:
        folder = team.engines[like.spec.members[0]].folder
        word = ByteVocab.load(folder).ids[b" is"][0]
        experts = 1.15 * EmbeddingRows(folder).rows("output")[word].float()[None]
        spec = replace(like.spec, name="etr-words", fusion=ETR(experts=experts))
        entries["etr-words"] = replace(like, spec=spec)
    return replace(team, entries=entries)


def _twice(entry: Entry) -> FusionSpec:
    """The fusion over two copies of its first member."""
    options = {**entry.settings.options, **COPIES.get(entry.method.id, {})}
    model = entry.spec.members[0]
    once = entry.settings.model_copy(update={"members": {model: 1.0}, "main": None, "options": options})
    spec = fusion_spec(f"{entry.spec.name}=twice", once)
    return FusionSpec(spec.name, (model, model), (0.5, 0.5), spec.fusion, 0, spec.feedback)


if __name__ == "__main__":
    sys.exit(main())
