"""ETR's expert tokens: whose question it is, by subject or by question, and what the meta model would write instead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from engines.byte_vocab import Unencodable
from engines.teaching import Learnt, Pupil, Tell
from engines.teaching.lessons import Lesson
from engines.teaching.reader import Read, Reader
from engines.teaching.share import share
from ensembles.options import one_of
from ensembles.tokens.etr import ETR, Conversation, fit
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["experts_by_subject", "teach"]

By = Literal["subject", "question"]


def teach(
    pupils: Sequence[Pupil],
    lessons: Sequence[Lesson],
    *,
    tell: Tell,
    by: By = "subject",
    rate: float = 5e-4,
    decay: float = 1.0,
    epochs: int = 5,
    batch: int = 64,
    warm_up: int = 5,
    seed: int = 0,
) -> Learnt:
    """Expert tokens of all pupils but the first, the meta model. `by` "subject": a question is its subject's best
    model's, by mean score over what is learnt from; by "question": the only model's that is right on it, and others are
    left out. A question of the meta model's own teaches ordinary tokens: those of a right answer."""
    import torch

    one_of("etr", By, by=by)
    names = [pupil.spec.name for pupil in pupils]
    if len(names) < 2:
        raise SettingsError("etr is taught with two members or more, the meta model first.")
    subjects = experts_by_subject(names, lessons)
    owners = [_owner(names, lesson) if by == "question" else subjects[lesson.subject] for lesson in lessons]
    reader = Reader(pupils[0].spec.folder, pupils[0].prompting, pupils[0].spec.dtype)
    reads: dict[int, Read] = {}
    for number, (lesson, owner) in enumerate(zip(lessons, owners, strict=True)):
        if owner is not None:
            reads[number] = _read(reader, lesson)
        if number % 200 == 199:
            tell(f"read {number + 1} of {len(lessons)} lessons")
    learn = [
        _conversation(read, owners[n])
        for n, read in reads.items()
        if not lessons[n].held_out
        and (owners[n] or lessons[n].right)  # the meta model needs words to learn from
    ]
    calls = sum(int(one.expert[0]) >= 0 for one in learn)
    tell(f"{len(learn)} conversations, {calls} of them with an expert's token")
    start = reader.head.mean(0).expand(len(names) - 1, -1)
    experts, losses = fit(
        start, learn, rate=rate, decay=decay, epochs=epochs, batch=batch, warm_up=warm_up, seed=seed
    )
    kept = {n: read for n, read in reads.items() if lessons[n].held_out}
    metrics = {
        "by": by, "subjects": {subject: names[owner] for subject, owner in sorted(subjects.items())},
        "conversations": len(learn), "calls": calls, "rate": rate, "decay": decay, "epochs": epochs, "seed": seed,
        "loss": [round(losses[0], 4), round(losses[-1], 4)],
        **judged(experts, names, lessons, owners, kept),
    }  # fmt: skip
    assert not torch.isnan(experts).any()
    return Learnt(ETR(experts=experts), metrics)


def experts_by_subject(names: Sequence[str], lessons: Sequence[Lesson]) -> dict[str, int]:
    """The model with the best mean score in each subject, held-out lessons aside; of equal ones the first."""
    scores: dict[str, list[list[float]]] = defaultdict(list)
    for lesson in lessons:
        if not lesson.held_out:
            scores[lesson.subject].append([lesson.scores[name] for name in names])
    found = {subject: int(np.nanmean(rows, axis=0).argmax()) for subject, rows in scores.items()}
    return found | {lesson.subject: 0 for lesson in lessons if lesson.subject not in found}


def _owner(names: Sequence[str], lesson: Lesson) -> int | None:
    right = [m for m, name in enumerate(names) if lesson.scores[name] == 1]
    return right[0] if len(right) == 1 else None


def _read(reader: Reader, lesson: Lesson) -> Read:
    """The meta model on the lesson's first right answer; where it has none that the model can write, at the answer's
    beginning alone."""
    prompt = reader.prompt(lesson.question)
    for answer in lesson.right:
        try:
            ids = reader.vocab.encode(answer.text.encode())
        except Unencodable:
            continue
        return reader.read(prompt, [[i] for i in ids], ended=answer.ended)
    return reader.read(prompt, [], ended=True)


def _conversation(read: Read, owner: int | None) -> Conversation:
    """The whole answer where it is the meta model's own; where it is expert k's, its token alone."""
    import torch

    assert owner is not None
    n = len(read.best) if owner == 0 else 1
    expert = torch.full((n,), owner - 1, dtype=torch.int64)
    return Conversation(read.states[:n].clone(), read.mass[:n].clone(), read.came[:n].clone(), expert)


def judged(
    experts: Tensor,
    names: Sequence[str],
    lessons: Sequence[Lesson],
    owners: Sequence[int | None],
    reads: dict[int, Read],
) -> dict[str, Any]:
    """On held-out questions, each a figure with its interval, [mean, low, high]: how often the one is called that the
    question belongs to, beside always taking the most frequent owner; what the answers score; and how often an expert
    would be called later in an answer, where no one should be."""
    chosen, first, later = [], list(reads), []
    for read in reads.values():
        z = read.states @ experts.T + 0.0
        best, called = z.max(-1)
        fires = best > read.top
        chosen.append(int(called[0]) + 1 if bool(fires[0]) else 0)
        later += fires[1:].tolist()
    owner = np.array([owners[n] for n in first])
    picked = np.array(chosen)
    hits = (picked == owner).astype(np.float64)
    majority = (owner == np.bincount(owner).argmax()).astype(np.float64)
    score = np.array([[lessons[n].scores[name] for name in names] for n in first])
    routed = score[np.arange(len(first)), picked]
    return {
        "held_out_questions": len(first), "routing_accuracy": share(hits), "majority": share(majority),
        "gain_over_majority": share(hits - majority), "called": round(float((picked > 0).mean()), 4),
        "called_later": round(float(np.mean(later)), 4) if later else 0.0, "score_routed": share(routed),
        "score_alone": {name: share(score[:, m]) for m, name in enumerate(names)},
        "score_gain_over_meta": share(routed - score[:, 0]), "score_oracle": share(score.max(1)),
    }  # fmt: skip
