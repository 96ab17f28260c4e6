"""Training what a fusion has to learn, from graded answers, on the engine models of a config: `chorus teach`.

    lessons    questions, answers known to be right, and who gave them
    reader     a model in transformers that reads texts: its hidden states, and what it would have written
    share      how sure a held-out figure is
    citer, etr one module a method, named by its id, with a `teach`

`teach(method, …)` finds the module; a method without one has nothing to learn here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from engines.engine import EngineSpec
from engines.teaching.lessons import Lesson
from engines.templates import Prompting
from protocol.errors import SettingsError

__all__ = ["Learnt", "Pupil", "Tell", "teach"]

Tell = Callable[[str], None]
"""Hears a line now and then."""


@dataclass(frozen=True, slots=True)
class Pupil:
    """A member of the fusion: its engine model and how it is prompted."""

    spec: EngineSpec
    prompting: Prompting


class Keeps(Protocol):
    """A fusion with something learnt."""

    def save(self, folder: Any, models: Sequence[str], **about: Any) -> Any:
        """Write its artefact."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """A fusion that has learnt, and what it is worth on the lessons held out."""

    fusion: Keeps
    metrics: Mapping[str, Any]


def teach(
    method: str, pupils: Sequence[Pupil], lessons: Sequence[Lesson], options: Mapping[str, Any], tell: Tell
) -> Learnt:
    """Train what the method of that id needs. Raises `SettingsError` for one that learns nothing here, and for
    options it does not take."""
    module = f"{__name__}.{method.replace('-', '_')}"
    if find_spec(module) is None:
        raise SettingsError(f"{method} has nothing that `chorus teach` could train.")
    try:
        learnt: Learnt = import_module(module).teach(pupils, lessons, tell=tell, **options)
    except TypeError as error:
        raise SettingsError(f"{method}: {error}") from None
    return learnt
