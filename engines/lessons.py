"""Graded answers as lessons for small models, and the models while they learn: what trainings in this package share.

Models are those of the transformers library, in float32, from a Hugging Face folder. Every eighth question is held
out."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engines.byte_vocab import ByteVocab
from engines.templates import Prompting, prompting

if TYPE_CHECKING:
    import torch

__all__ = [
    "ANSWERS",
    "BATCH",
    "Answer",
    "Lesson",
    "Reading",
    "answers",
    "batches",
    "freeze_below",
    "lesson",
    "lessons",
    "load",
    "read",
    "save",
    "tell",
]

T = TypeVar("T")

ANSWERS = Path("config/queries/everyday.outcomes.parquet")
HELD_OUT = 8
"""Every so many questions one is kept for the report."""
BATCH = 8
"""Answers a step."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a question, and how many tokens its author spent on it, the end's included."""

    question: str
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Lesson:
    """Token ids of a prompt and of the answer to it, its end included where the answer came to one."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Lessons as a model read them: `logits` before each token of their answers, one after another, (n, |V|), those
    tokens, `labels` (n,), and what each layer gave there, `states` ((n, D), …), the last one after the final norm."""

    lessons: Sequence[Lesson]
    logits: torch.Tensor
    labels: torch.Tensor
    states: tuple[torch.Tensor, ...]


def answers(table: Path, *, by: str | None = None) -> tuple[list[Answer], list[Answer]]:
    """Answers to learn from and answers held out, by question: all that the model `by` gave, or the right ones of any
    model."""
    import pyarrow.parquet as parquet

    rows = parquet.read_table(table, columns=["query", "model", "score", "completion_tokens", "response"])
    split: tuple[list[Answer], list[Answer]] = ([], [])
    for number, row in enumerate(rows.to_pylist()):
        if row["response"].strip() and (row["model"] == by if by else row["score"] == 1):
            held_out = (number // 2) % HELD_OUT == 0  # two rows a question
            split[held_out].append(Answer(row["query"], row["response"], row["completion_tokens"]))
    return split


def lesson(vocab: ByteVocab, prompts: Prompting, answer: Answer) -> Lesson:
    """The answer in a model's own tokens, behind its own prompt."""
    prompt = vocab.encode_prompt(prompts.render([{"role": "user", "content": answer.question}]).text)
    ids = vocab.encode(answer.text.encode())
    end = vocab.encode_prompt("<|im_end|>")[-1]
    if end not in vocab.eos:
        end = min(vocab.eos)
    ended = [end] if answer.tokens > len(ids) else []  # the end was a token of its own
    return Lesson(tuple(prompt), (*ids, *ended))


def lessons(table: Path, folder: Path, *, by: str | None = None) -> tuple[list[Lesson], list[Lesson]]:
    """`answers` as lessons for the model in `folder`."""
    vocab, prompts = ByteVocab.load(folder), prompting(folder)
    learnt, kept = answers(table, by=by)
    return [lesson(vocab, prompts, each) for each in learnt], [lesson(vocab, prompts, each) for each in kept]


def load(folder: Path) -> Any:
    """The model, not in training mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def freeze_below(model: Any, layer: int) -> None:
    """Let only the layers from `layer` on, and the final norm, learn."""
    model.requires_grad_(requires_grad=False)
    model.model.layers[layer:].requires_grad_(requires_grad=True)
    model.model.norm.requires_grad_(requires_grad=True)


def batches(learnt: Sequence[T], steps: int, seed: int) -> Iterator[list[T]]:
    """`steps` batches, all lessons once before any comes again."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order += torch.randperm(len(learnt), generator=generator).tolist()
        yield [learnt[i] for i in order[:BATCH]]
        del order[:BATCH]


def read(model: Any, batch: Sequence[Lesson], *, inside: bool = False) -> Reading:
    """What the model makes of the batch; without `inside`, of states there is the last. The head runs on the answers'
    positions only."""
    import torch

    rows = [[*lesson.prompt, *lesson.answer] for lesson in batch]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    found = model.model(ids, attention_mask=mask, output_hidden_states=inside)
    layers = found.hidden_states[1:] if inside else (found.last_hidden_state,)
    where = [
        (i, len(lesson.prompt) + j - 1) for i, lesson in enumerate(batch) for j in range(len(lesson.answer))
    ]
    at = torch.tensor(where)
    states = tuple(layer[at[:, 0], at[:, 1]] for layer in layers)
    labels = torch.tensor([token for lesson in batch for token in lesson.answer])
    return Reading(batch, model.lm_head(states[-1]).float(), labels, states)


def save(model: Any, folder: Path, out: Path) -> str:
    """Write the model beside the tokenizer and templates of `folder`; the digest of its weights."""
    model.requires_grad_(requires_grad=True)
    model.save_pretrained(out)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def tell(report: Mapping[str, Any], path: Path | None) -> None:
    """Print what came of a training as JSON, and keep it where there is a path."""
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
