"""Asks a running host, and keeps what was found from one run of a benchmark to the next."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from engines.generation import End, Event, Failure, Generation, Piece, Sampling, TokenLogprob
from engines.host import Host
from engines.templates import Prompting
from outcomes.collect import Prompt, read_prompts

__all__ = ["Answer", "Asker", "Kept", "questions"]

EVERYDAY = Path("config/queries/everyday.jsonl")
HELD_OUT = 8
"""`engines.partners` keeps every so many questions out of its lessons: those are asked here."""


def questions(n: int) -> list[Prompt]:
    """So many graded questions, of all categories alike, none of which the partners were trained on while there
    are such."""
    asked = read_prompts(EVERYDAY)
    held_out = asked[::HELD_OUT]
    others = [question for i, question in enumerate(asked) if i % HELD_OUT]
    return _spread(held_out, n) + _spread(others, max(0, n - len(held_out)))


def _spread(some: Sequence[Prompt], n: int) -> list[Prompt]:
    """So many of them, evenly; all where there are fewer."""
    n = min(n, len(some))
    return [some[i * len(some) // n] for i in range(n)]


@dataclass(slots=True)
class Answer:
    """What one request said, and when: seconds from when it was sent to its first words and to its end."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    end: End | None = None
    first_s: float = 0.0
    last_s: float = 0.0
    pieces: list[float] = field(default_factory=list)
    """When each piece of it came, by the monotonic clock."""

    @property
    def written(self) -> int:
        """The main member's tokens."""
        return self.end.members[0].completion_tokens if self.end else 0


class Ticket:
    """A request under way."""

    def __init__(self, host: Host, generation: Generation) -> None:
        self.id = generation.id
        self._events: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        self._sent = time.monotonic()
        host.submit(generation, lambda event: self._events.put((time.monotonic(), event)))

    def wait(self, timeout_s: float = 900.0) -> Answer:
        """The whole answer. Raises `ChorusError` where the request failed."""
        answer = Answer()
        while True:
            at, event = self._events.get(timeout=timeout_s)
            if isinstance(event, Failure):
                raise event.error
            if not answer.first_s:
                answer.first_s = at - self._sent
            if isinstance(event, End):
                answer.end, answer.last_s = event, at - self._sent
                return answer
            assert isinstance(event, Piece)
            answer.text += event.text
            answer.tokens += event.tokens
            answer.pieces.append(at)


class Asker:
    """Sends questions to a host, as the gateway would have them sent."""

    def __init__(self, host: Host, prompts: Mapping[str, Prompting]) -> None:
        self.host = host
        self._prompts = prompts
        self._ids = count()

    def prompt_ids(self, model: str, question: str) -> tuple[tuple[int, ...], ...]:
        """The prompt of every member."""
        messages = [{"role": "user", "content": question}]
        return tuple(
            tuple(self.host.vocabs[m].encode_prompt(self._prompts[m].render(messages).text))
            for m in self.host.members_of(model)
        )

    def send(self, model: str, question: str, **sampling: Any) -> Ticket:
        """Submit a question; greedy unless told otherwise. The answer ends where a member's transcript has the next
        speaker begin."""
        messages = [{"role": "user", "content": question}]
        rendered = [self._prompts[m].render(messages) for m in self.host.members_of(model)]
        asked = {
            "stops": tuple(stop for one in rendered for stop in one.stops),
            "before": next((one.before for one in rendered if one.before), b""),
            **sampling,
        }
        return self.send_ids(model, self.prompt_ids(model, question), **asked)

    def send_ids(self, model: str, prompts: tuple[tuple[int, ...], ...], **sampling: Any) -> Ticket:
        """Submit prompts as they are."""
        asked = Sampling(**{"temperature": 0.0, **sampling})
        return Ticket(self.host, Generation(f"bench-{next(self._ids)}", model, prompts, asked))

    def all(
        self, model: str, asked: Iterable[tuple[str, Mapping[str, Any]]], at_once: int = 16
    ) -> Iterator[Answer]:
        """The answers in order, so many requests at a time; each question has its sampling."""
        waiting: deque[Ticket] = deque()
        for question, sampling in asked:
            waiting.append(self.send(model, question, **sampling))
            if len(waiting) == at_once:
                yield waiting.popleft().wait()
        while waiting:
            yield waiting.popleft().wait()


class Kept:
    """Found values by key, one JSON line each, so that a benchmark that was stopped goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._found: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                key, value = json.loads(line)
                self._found[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def part(self, first: str, second: str, place: int) -> list[str]:
        """Of all keys that begin with these two parts, the part at a place, each once, in the order they were kept."""
        keys = (key.split("/") for key in self._found)
        return list(dict.fromkeys(parts[place] for parts in keys if parts[:2] == [first, second]))

    def keep(self, key: str, value: Any) -> None:
        """Write it down."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")
        self._found[key] = json.loads(json.dumps(value))
