"""Answers, and ends of answers, written by engine models many at once: for labelling and measuring, not for serving.

with Rollouts.of(settings) as rollouts:
    ends = rollouts.write("smollm2-135m", [("What is 2 + 3?", "2 + 3", 24)])
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from engines.assemble import engine_specs
from engines.generation import End, Event, Failure, Generation, Piece, Sampling
from engines.host import FusionSpec, Host
from engines.templates import Prompting, prompting
from ensembles.spans.base import Reading, Task, Writing, survey
from protocol.errors import SettingsError
from protocol.settings import Settings

__all__ = ["SURVEY", "Rollouts", "Surveyor", "heard"]

SURVEY = "survey of all engines"
"""A fusion's name that no config can have."""


@dataclass
class Surveyor:
    """Has its members read the prompt, and writes nothing."""

    readings: dict[str, tuple[Reading, ...]] = field(default_factory=dict)

    def write(self, task: Task) -> Writing:
        """Keep what they read, by question."""
        self.readings[task.question] = yield from survey(range(len(task.weights)))


class Rollouts:
    """A running host and how its models are prompted; a context that stops it. `temperature` and `top_p` of what is
    written; a `seed` repeats it, up to how requests are batched."""

    def __init__(
        self,
        host: Host,
        prompts: Mapping[str, Prompting],
        *,
        temperature: float = 0.9,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.host, self._prompts = host, prompts
        self._temperature, self._top_p, self._seeds = temperature, top_p, count(seed)

    @classmethod
    def of(cls, settings: Settings, *, temperature: float = 0.9, seed: int = 0) -> Self:
        """With the engine models of `settings`, loaded. Raises `SettingsError`."""
        specs = engine_specs(settings)
        if not specs:
            raise SettingsError("The config has no engine models, so nobody could write.")
        names = tuple(spec.name for spec in specs)
        team = FusionSpec(SURVEY, names, (1.0,) * len(names), Surveyor(), feedback="retail")
        kinds = {name: model.engine.chat for name, model in settings.models.items() if model.engine}
        host = Host(specs, [team])
        host.start()
        return cls(
            host,
            {spec.name: prompting(spec.folder, kinds[spec.name]) for spec in specs},
            temperature=temperature,
            seed=seed,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.host.stop()

    def write(self, model: str, begun: Sequence[tuple[str, str, int]]) -> list[str]:
        """What `model` adds to each (question, answer so far), at most so many tokens. Raises `ChorusError`."""
        vocab, waiting = self.host.vocabs[model], []
        for question, answer, tokens in begun:
            rendered = self._prompts[model].render([{"role": "user", "content": question}])
            prompt = (*vocab.encode_prompt(rendered.text), *vocab.encode(answer.encode()))
            sampling = Sampling(
                max_tokens=tokens,
                temperature=self._temperature,
                top_p=self._top_p,
                seed=next(self._seeds),
                stops=rendered.stops,
                before=rendered.before if not answer else answer.encode()[-1:],
            )
            waiting.append(self._send(model, (prompt,), sampling, question))
        return [heard(events)[0] for events in waiting]

    def survey(self, questions: Sequence[str]) -> dict[str, list[Reading]]:
        """How each model reads each question, by model. Raises `ChorusError`."""
        members = self.host.members_of(SURVEY)
        asked = dict.fromkeys(questions)
        waiting = []
        for question in asked:
            messages = [{"role": "user", "content": question}]
            prompts = tuple(
                tuple(self.host.vocabs[m].encode_prompt(self._prompts[m].render(messages).text))
                for m in members
            )
            waiting.append(self._send(SURVEY, prompts, Sampling(temperature=0.0), question))
        for events in waiting:
            heard(events)
        surveyor = self.host.fusion_specs[SURVEY].fusion
        assert isinstance(surveyor, Surveyor)
        return {name: [surveyor.readings[q][m] for q in asked] for m, name in enumerate(members)}

    def _send(
        self, model: str, prompts: tuple[tuple[int, ...], ...], sampling: Sampling, question: str
    ) -> queue.SimpleQueue[Event]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        id = f"rollout-{next(self._seeds)}"
        self.host.submit(Generation(id, model, prompts, sampling, question=question), events.put)
        return events


def heard(events: queue.SimpleQueue[Event]) -> tuple[str, End]:
    """All of an answer, and how it ended. Raises what made it fail."""
    text = ""
    while isinstance(event := events.get(), Piece):
        text += event.text
    if isinstance(event, Failure):
        raise event.error
    assert isinstance(event, End)
    return text, event
