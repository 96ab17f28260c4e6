"""Collecting outcomes: ask every model every prompt, grade, and never lose a row that was paid for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from outcomes.grading import GRADERS, Ask, Judge, grade
from outcomes.journal import Journal
from outcomes.table import OutcomeTable, Row, query_id, write_table
from protocol.chat import ChatRequest
from protocol.errors import ChorusError, SettingsError, UpstreamRefused
from protocol.run import Reply

__all__ = ["Collected", "Failure", "Progress", "Prompt", "collect", "read_prompts"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One auto-gradable question. `answers`: what `grader` accepts; `choices`: the options of a `choice`."""

    id: str
    category: str
    prompt: str
    grader: str
    answers: tuple[str, ...]
    max_tokens: int
    choices: tuple[str, ...] = ()

    def grade(self, text: str) -> float:
        """1.0 for a right answer, else 0.0, by the question's own rule; not for one that a judge grades."""
        return grade(self.grader, text, self.answers, choices=self.choices)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a collection stands. `done` of `total` rows, `resumed` of them from the journal; `failed` given
    up; `cost_usd` US dollars spent since it started."""

    done: int
    total: int
    resumed: int
    failed: int
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A row given up: the cell stays empty, and a later run tries it again."""

    query_id: str
    model: str
    error: str


@dataclass(frozen=True, slots=True)
class Collected:
    """The outcome table as written, what is missing in it, and how many rows came from the journal."""

    table: OutcomeTable
    failures: tuple[Failure, ...]
    resumed: int


def read_prompts(path: Path) -> list[Prompt]:
    """Read a query set, one JSON object a line. Raises `SettingsError` naming the line that is wrong."""
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            prompt = _prompt(orjson.loads(line))
        except (orjson.JSONDecodeError, TypeError) as error:
            raise SettingsError(f"{path}:{number}: not a prompt: {error}.") from None
        if prompt.grader not in (*GRADERS, "judge"):
            accepted = ", ".join((*GRADERS, "judge"))
            raise SettingsError(f"{path}:{number}: unknown grader {prompt.grader!r}; accepted: {accepted}.")
        if (first := seen.setdefault(query_id(prompt.prompt), number)) != number:
            raise SettingsError(f"{path}:{number}: the same prompt stands on line {first}.")
        prompts.append(prompt)
    return prompts


def _prompt(record: Any) -> Prompt:
    """Raises `TypeError` saying what is missing, or is there and means nothing."""
    if not isinstance(record, dict):
        raise TypeError("a line is an object")
    known = {field.name for field in fields(Prompt)}
    required = [field.name for field in fields(Prompt) if field.default is MISSING]
    if lacking := [name for name in required if name not in record]:
        raise TypeError(f"it has no {', '.join(map(repr, lacking))}")
    if unknown := sorted(record.keys() - known):
        raise TypeError(
            f"nothing is called {', '.join(map(repr, unknown))} here; known: {', '.join(sorted(known))}"
        )
    listed = {name: tuple(record.get(name, ())) for name in ("answers", "choices")}
    return Prompt(**{**record, **listed})


async def collect(
    prompts: Sequence[Prompt],
    models: Sequence[str],
    ask: Ask,
    out: Path,
    *,
    concurrency: int = 8,
    retries: int = 2,
    logprobs: bool = True,
    judge: Judge | None = None,
    progress: Callable[[Progress], None] | None = None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Collected:
    """Ask each of `models` every prompt, greedily, at most `concurrency` at once; write the table to `out`
    (parquet).

    Finished rows go to a journal beside `out` at once, and rows found there are not asked again. A call
    that fails is tried `retries` times more where that makes sense, then left missing and reported. With
    `logprobs`, token log-probabilities are asked for; a model that refuses them is asked without. Raises
    `SettingsError` when prompts want a judge and there is none.
    """
    if judge is None and any(prompt.grader == "judge" for prompt in prompts):
        raise SettingsError("Some prompts are graded by a judge model; name one.")
    with Journal(out.with_suffix(".journal.jsonl")) as journal:
        asked = _Asked(ask, judge, journal, retries, pause, set(models) if logprobs else set())
        jobs = [(prompt, model) for prompt in prompts for model in models if not asked.has(prompt, model)]
        total = len(prompts) * len(models)
        resumed = total - len(jobs)
        waiting: Iterator[tuple[Prompt, str]] = iter(jobs)
        done = resumed

        async def work() -> None:
            nonlocal done
            for prompt, model in waiting:
                await asked.finish(prompt, model)
                done += 1
                if progress:
                    progress(Progress(done, total, resumed, len(asked.failures), asked.cost_usd))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(concurrency, len(jobs))):
                tasks.create_task(work())
        rows = [
            journal.rows[key]
            for prompt in prompts
            for model in models
            if (key := (query_id(prompt.prompt), model)) in journal.rows
        ]
    table = OutcomeTable.of(rows, models)
    await asyncio.to_thread(write_table, table, out)
    return Collected(table, tuple(asked.failures), resumed)


@dataclass(slots=True)
class _Asked:
    """What the workers share: how to ask, where answers go, and what went wrong. `with_logprobs`: the
    models that have not refused to send log-probabilities."""

    ask: Ask
    judge: Judge | None
    journal: Journal
    retries: int
    pause: Callable[[float], Awaitable[None]]
    with_logprobs: set[str]
    failures: list[Failure] = field(default_factory=list)
    cost_usd: float = 0.0

    def has(self, prompt: Prompt, model: str) -> bool:
        """Whether the journal has this row, graded."""
        row = self.journal.rows.get((query_id(prompt.prompt), model))
        return row is not None and not math.isnan(row.score)

    async def finish(self, prompt: Prompt, model: str) -> None:
        """Ask, grade and journal one row; on failure, note it."""
        id = query_id(prompt.prompt)
        try:
            row = self.journal.rows.get((id, model)) or await self._answered(prompt, model)
            if math.isnan(row.score) and self.judge is not None:
                self.journal.append(replace(row, score=await self._judged(self.judge, prompt, row)))
        except ChorusError as error:
            self.failures.append(Failure(id, model, error.message))

    async def _answered(self, prompt: Prompt, model: str) -> Row:
        """The model's answer, journalled before a judge is asked, because it is paid for."""
        reply = await self._try(lambda: self._asked(prompt, model))
        text, usage = reply.text, reply.usage
        row = Row(
            query_id(prompt.prompt),
            prompt.prompt,
            prompt.category,
            model,
            cost_usd=reply.cost_usd,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            latency_s=reply.latency_s,
            response=text,
            logprobs=tuple(reply.token_logprobs) or None,
        )
        if prompt.grader != "judge":
            row = replace(row, score=prompt.grade(text))
        self.journal.append(row)
        self.cost_usd += reply.cost_usd
        return row

    async def _judged(self, judge: Judge, prompt: Prompt, row: Row) -> float:
        return await self._try(lambda: judge.grade(prompt.prompt, row.response or "", prompt.answers))

    async def _asked(self, prompt: Prompt, model: str) -> Reply:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt.prompt}],
            "max_tokens": prompt.max_tokens,
            "temperature": 0.0,
        }
        if model in self.with_logprobs:
            try:
                return await self.ask(model, ChatRequest({**body, "logprobs": True}))
            except ChorusError as error:
                if error.status not in (400, 422):
                    raise
                reply = await self.ask(model, ChatRequest(body))
                # It was the log-probabilities that it minded, since it answers without.
                self.with_logprobs.discard(model)
                return reply
        return await self.ask(model, ChatRequest(body))

    async def _try(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, tried again after a growing pause where the error says that may help."""
        for n in range(self.retries):
            try:
                return await attempt()
            except ChorusError as error:
                refused = isinstance(error, UpstreamRefused) and error.status not in (408, 409, 429)
                if refused or not error.retryable:
                    raise
                await self.pause(getattr(error, "retry_after_s", None) or 0.5 * 2**n)
        return await attempt()
