"""Ensemble-Hub: rounds of segments, of which a process reward keeps the best.

Ensemble-Hub, Fzkuji, software, 2025, https://github.com/Fzkuji/Ensemble-Hub; there is no paper.

    z_m = (μ_ppl − ppl_m) / σ_ppl + (conf_m − μ_conf) / σ_conf      the `pick` members with the largest z write,
                                                                   one more where 90 % find the question hard
    next = argmax of the reward of text + segment                  over what they write, of what is no rubbish

ppl and conf: perplexity of the question and mean largest probability there, of which `chorus spans reference` measures
μ and σ. A round whose best reward is below `threshold` is tried again, `retries` times; a segment that was kept
`repeats` times ends the answer, and so do `rounds` of them.

*Needs* members that write text; a process reward; for the pick, reference statistics. *Returns* spans, each by one
member.

*Differs from the paper*, or, since there is none, from the program. Its reward is 10 × P(good), ours P: its threshold
of 0.5 is 0.05 here. A round is tried again a bounded number of times; then the best is kept, where the program could go
on for ever. An answer has ended where its member or a stop string says so (its vLLM path takes an empty end for one).
What rewards read is the text that members are shown, not parts joined by newlines. A segment that ends the answer may
be short. Perplexity is over the tokens of the prompt that are text. Without reference statistics all members write.
Rewards here are local models; an API as scorer is not offered.

*Laws.* One member and a constant reward: ordinary sampling, chunk by chunk; a reward that loves a marker always gets
it; z is that of a computation by hand."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ensembles.options import number, whole
from ensembles.rewards import Reward, load_panel, rewards
from ensembles.spans.base import Draft, Reading, Span, Task, Work, Writing, commit, propose, survey
from protocol.errors import MethodError, SettingsError
from protocol.methods import Evidence, Method

__all__ = ["METHOD", "EnsembleHub", "Reference", "is_sound", "load_references", "picked", "save_references"]

_SMALL = "tests/ensembles/spans/test_ensemble_hub.py"
_HOST = "tests/engines/test_rewarded.py"

METHOD = Method(
    id="ensemble-hub",
    title="Ensemble-Hub: segments kept by a process reward",
    year=2025,
    paper="https://github.com/Fzkuji/Ensemble-Hub",
    taxonomy="b2",
    contract="span",
    implementation="EnsembleHub",
    needs=frozenset({"text", "artefact"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "one member and a constant reward: ordinary sampling, chunk by chunk, on tiny models",
            f"{_HOST}::test_a_hub_of_one_samples_chunk_by_chunk",
        ),
        Evidence(
            "invariant",
            "a reward that loves a marker always gets it",
            f"{_SMALL}::test_a_reward_that_loves_a_marker_gets_it",
        ),
        Evidence(
            "exact equivalence",
            "members are picked as a computation by hand says",
            f"{_SMALL}::test_members_are_picked_as_by_hand",
        ),
        Evidence(
            "exact equivalence",
            "perplexity and confidence of a question are those of a loop without a cache",
            f"{_HOST}::test_a_survey_reads_prompts_as_they_are",
        ),
        Evidence(
            "invariant",
            "no reward and no repetition keeps it from ending",
            f"{_SMALL}::test_it_always_ends",
        ),
    ),
    unverified="There is no paper and no published figure. Whether the program counts a repeated segment in a row or "
    "in all is not known to us (here: in all), nor what its filter does with short segments that end the answer.",
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A member's perplexity and confidence over a set of questions: mean and standard deviation of each."""

    perplexity: tuple[float, float]
    confidence: tuple[float, float]

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> Self:
        """Of a member's readings of at least two questions."""
        perplexities, confidences = (
            [getattr(r, of) for r in readings] for of in ("perplexity", "confidence")
        )
        return cls(
            (statistics.fmean(perplexities), statistics.stdev(perplexities)),
            (statistics.fmean(confidences), statistics.stdev(confidences)),
        )

    def z(self, reading: Reading) -> float:
        """z_m: how much easier than usual a member finds a question."""
        easier = _ratio(self.perplexity[0] - reading.perplexity, self.perplexity[1])
        return easier + _ratio(reading.confidence - self.confidence[0], self.confidence[1])


def save_references(folder: Path, members: Mapping[str, Sequence[Reading]], data: str) -> None:
    """Write what members read, by model; `data`: digest of the questions. Raises `OSError`."""
    import numpy as np

    from outcomes.artefact import Manifest, save_artefact

    found = {name: Reference.of(readings) for name, readings in members.items()}
    tensors = {
        "perplexity": np.array([reference.perplexity for reference in found.values()]),
        "confidence": np.array([reference.confidence for reference in found.values()]),
    }
    questions = {"questions": min(len(readings) for readings in members.values())}
    save_artefact(
        folder, Manifest(method=METHOD.id, models=tuple(found), data=data, metrics=questions), tensors
    )


def load_references(folder: Path, members: Sequence[str]) -> tuple[Reference, ...]:
    """Those of `members`, in order. Raises `MethodError`, `ArtefactMismatch`."""
    from outcomes.artefact import load_artefact, tensor

    manifest, tensors = load_artefact(folder, method=METHOD.id)
    missing = [name for name in members if name not in manifest.models]
    if missing:
        raise MethodError(f"{folder} has no statistics of {missing[0]}; it has {', '.join(manifest.models)}.")
    shape = (len(manifest.models), 2)
    perplexity, confidence = (tensor(tensors, name, shape).tolist() for name in ("perplexity", "confidence"))
    rows = [manifest.models.index(name) for name in members]
    return tuple(Reference(tuple(perplexity[i]), tuple(confidence[i])) for i in rows)


@dataclass(frozen=True, slots=True)
class EnsembleHub:
    """`segment` is a segment's tokens; `temperature` and `top_p` of the drafts, None for the request's; `threshold` in
    [0, 1], `retries`, `repeats`, `rounds` and `pick` as above; `scorers` the weight of each reward among the
    artefacts."""

    segment: int = 128
    temperature: float | None = 0.95
    top_p: float | None = 0.7
    threshold: float = 0.05
    retries: int = 3
    repeats: int = 3
    rounds: int = 500
    pick: int = 2
    scorers: Mapping[str, float] = field(default_factory=lambda: {"reward": 1.0})
    reward: Reward | None = None
    references: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, 2048, segment=self.segment)
        whole(METHOD.id, 0, 100, retries=self.retries)
        whole(METHOD.id, 1, repeats=self.repeats, rounds=self.rounds, pick=self.pick)
        number(METHOD.id, 0, 1, threshold=self.threshold)
        if not isinstance(self.scorers, Mapping) or not self.scorers:
            raise SettingsError(f"{METHOD.id}: scorers must be weights by name, got {self.scorers!r}.")
        number(METHOD.id, 0, **{f"scorers.{name}": weight for name, weight in self.scorers.items()})
        if not sum(self.scorers.values()):
            raise SettingsError(f"{METHOD.id}: some scorer must have a weight above 0.")

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> Self:
        """With its rewards, and the statistics of `members` where there are any (`reference`)."""
        found = artefacts.get("reference")
        references = load_references(found, members) if found else ()
        rest = {name: folder for name, folder in artefacts.items() if name != "reference"}
        return replace(self, reward=load_panel(METHOD.id, self.scorers, rest), references=references)

    def write(self, task: Task) -> Writing:
        """Round by round."""
        members = yield from self._writers(task)
        drafts = [Draft(m, _segment, self.segment, self.temperature, self.top_p, stops=True) for m in members]
        text, kept, tries = b"", Counter[bytes](), 0
        failed: tuple[Span, ...] = ()
        for _ in range(self.rounds * (self.retries + 1)):
            spans = yield from propose(*drafts)
            sound = [span for span in spans if span.ended or is_sound(span.text)]
            values = yield from rewards(self.reward, task.question, [text + span.text for span in sound])
            # Greedy drafts are the same the next time: then there is nothing to hope for.
            if max(values, default=-1.0) < self.threshold and tries < self.retries and spans != failed:
                tries, failed = tries + 1, spans
                continue
            if not sound:
                return
            best = sound[values.index(max(values))]
            yield from commit(best)
            text, tries, failed = text + best.text, 0, ()
            kept[best.text] += 1
            if kept[best.text] >= self.repeats or kept.total() >= self.rounds:
                return

    def _writers(self, task: Task) -> Generator[Work, Any, Sequence[int]]:
        members = range(len(task.weights))
        if not self.references or len(members) <= self.pick:
            return members
        readings = yield from survey(members)
        return picked(readings, self.references, self.pick)


def picked(readings: Sequence[Reading], references: Sequence[Reference], pick: int) -> list[int]:
    """The members with the largest z, in the order of the config: `pick`, or one more where at least 90 % of all find
    the question harder than their average."""
    both = list(zip(readings, references, strict=True))
    hard = sum(reading.perplexity > reference.perplexity[0] for reading, reference in both)
    z = [reference.z(reading) for reading, reference in both]
    count = pick + (hard >= 0.9 * len(both))
    return sorted(sorted(range(len(z)), key=lambda m: -z[m])[:count])


def is_sound(segment: bytes) -> bool:
    """Whether it is worth a judgement: five characters and more, some of them letters or digits, more than two
    different ones, and none five times in a row."""
    text = segment.decode(errors="replace").strip()
    return (
        len(text) >= 5
        and re.search(r"\w", text) is not None
        and len(set(text)) > 2
        and re.search(r"(\S)\1{4}", text) is None
    )


def _segment(text: bytes, *, final: bool) -> int | None:
    """All of the draft, up to its last whole line where it has one."""
    return (text.rfind(b"\n") + 1 or len(text)) if final else None


def _ratio(value: float, spread: float) -> float:
    """`value` in units of a standard deviation; 0 where nothing varies."""
    return value / spread if spread else 0.0
