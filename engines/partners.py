"""Two real partners for SmolLM2 with its vocabulary, made on a CPU in minutes: `python -m engines.partners`.

    tuned     a copy whose last layers are trained on the answers that a grader found right
    pruned    a smaller one: the layers that change their input least are left out (block influence, Men et
              al., 2024, arXiv 2403.03853), the rest is distilled from the whole model's distributions

Methods for models of one vocabulary (spec-ensemble, cp-delta, transformer-copilot) need members that differ.
These two do, and cost no download. Both learn from a table of graded answers
(`config/queries/everyday.outcomes.parquet`, written for this project); every eighth question is held out and
serves the report: loss curve, digest, and how often the greedy text differs from the source model's. They are
partners for measurements, not better models."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.lessons import ANSWERS, BATCH, Lesson, batches, freeze_below, lessons, load, read, save, tell
from engines.weights import Home, ensure

if TYPE_CHECKING:
    import torch

__all__ = ["Report", "least_influential", "main", "make"]

SOURCE, OWN = "smollm2-135m-instruct", "smollm2-135m"
"""The source's weights, and its name in the table of answers."""
TRAINED = 10
"""Layers of the tuned copy that are trained, the last ones: the backward pass stops there."""
LEARNING_RATE = {"tuned": 1e-4, "pruned": 3e-4}


@dataclass(frozen=True, slots=True)
class Report:
    """What a training run did. Losses are nats a token of the answer (tuned: cross-entropy; pruned: KL from
    the whole model), each the mean of `every` steps; `held_out` before and after training."""

    kind: str
    source: str
    layers: tuple[int, ...]
    steps: int
    seconds: float
    every: int
    losses: tuple[float, ...]
    held_out: tuple[float, float]
    prompts: int
    differ: float
    """Share of held-out prompts on which the greedy text is not the source model's."""
    same_token: float
    """Share of positions in the source model's greedy texts where the partner's most likely token is the
    same."""
    sha256: str


def make(
    kind: str, folder: Path, out: Path, table: Path, *, steps: int, drop: int = 0, seed: int = 0
) -> Report:
    """Train a partner of the model in `folder` and write it to `out`, a folder of the same form.

    `drop` is the number of layers the pruned one loses. Takes minutes; raises OSError where `out` cannot be
    written."""
    import torch

    began = time.monotonic()
    torch.manual_seed(seed)
    learnt, kept = lessons(table, folder, by=OWN if kind == "pruned" else None)
    source, partner = load(folder), load(folder)
    layers = list(range(len(source.model.layers)))
    if kind == "pruned":
        gone = least_influential(source, learnt[: 4 * BATCH], drop)
        layers = [i for i in layers if i not in gone]
        _keep(partner, layers)
    else:
        freeze_below(partner, len(layers) - TRAINED)
    loss_of = _distance if kind == "pruned" else _surprise
    optimiser = torch.optim.AdamW(
        [p for p in partner.parameters() if p.requires_grad], lr=LEARNING_RATE[kind], weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    every = max(1, steps // 20)
    before = _held_out(loss_of, partner, source, kept)
    losses: list[float] = []
    for batch in batches(learnt, steps, seed):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(partner, source, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(partner.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss))
        if len(losses) % every == 0:
            print(f"{len(losses):>5} {sum(losses[-every:]) / every:.4f}", flush=True)
    after = _held_out(loss_of, partner, source, kept)
    sha256 = save(partner, folder, out)
    differ, same = _compare(partner, source, kept[:48])
    curve = tuple(round(sum(losses[i : i + every]) / every, 4) for i in range(0, steps - every + 1, every))
    return Report(
        kind,
        folder.name,
        tuple(layers),
        steps,
        round(time.monotonic() - began, 1),
        every,
        curve,
        (round(before, 4), round(after, 4)),
        len(kept[:48]),
        round(differ, 4),
        round(same, 4),
        sha256,
    )


def least_influential(model: Any, sample: Sequence[Lesson], count: int) -> frozenset[int]:
    """The `count` layers, neither the first nor the last, whose output is most like their input: the mean
    cosine over all tokens of `sample`."""
    import torch

    total = torch.zeros(len(model.model.layers))
    with torch.no_grad():
        for lesson in sample:
            states = model(
                torch.tensor([[*lesson.prompt, *lesson.answer]]), output_hidden_states=True
            ).hidden_states
            for i in range(len(total)):
                total[i] += torch.cosine_similarity(states[i], states[i + 1], dim=-1).mean()
    order = (-total[1:-1]).argsort() + 1
    return frozenset(order[:count].tolist())


def _keep(model: Any, layers: Sequence[int]) -> None:
    import torch

    kept = [model.model.layers[i] for i in layers]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    model.model.embed_tokens.requires_grad_(requires_grad=False)


def _surprise(model: Any, source: Any, batch: Sequence[Lesson]) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    import torch

    reading = read(model, batch)
    return torch.nn.functional.cross_entropy(reading.logits, reading.labels)


def _distance(model: Any, source: Any, batch: Sequence[Lesson]) -> torch.Tensor:
    """Mean KL(source ‖ model) over the answers' positions."""
    import torch

    with torch.no_grad():
        wanted = read(source, batch).logits
    logits = read(model, batch).logits
    return torch.nn.functional.kl_div(
        logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
    )


def _held_out(loss_of: Any, model: Any, source: Any, kept: Sequence[Lesson]) -> float:
    import torch

    sample = kept[: 6 * BATCH]
    with torch.no_grad():
        losses = [float(loss_of(model, source, sample[i : i + BATCH])) for i in range(0, len(sample), BATCH)]
    return sum(losses) / len(losses)


def _compare(partner: Any, source: Any, kept: Sequence[Lesson], tokens: int = 24) -> tuple[float, float]:
    """Share of prompts with other greedy texts, and share of the source's tokens that the partner would have
    written."""
    import torch

    differ, same, count = 0, 0, 0
    for lesson in kept:
        prompt = torch.tensor([lesson.prompt])
        text = _greedy(source, prompt, tokens)
        differ += text != _greedy(partner, prompt, tokens)
        with torch.no_grad():
            reading = read(partner, [Lesson(lesson.prompt, tuple(text))])
        same += int((reading.logits.argmax(-1) == reading.labels).sum())
        count += len(text)
    return differ / len(kept), same / count


def _greedy(model: Any, prompt: Any, tokens: int) -> list[int]:
    import torch

    with torch.no_grad():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return [int(token) for token in out[0, prompt.shape[1] :]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train one partner, print and write its report."""
    parser = argparse.ArgumentParser(
        prog="python -m engines.partners", description="Make a partner of SmolLM2 with the same vocabulary."
    )
    parser.add_argument("kind", choices=("tuned", "pruned"))
    parser.add_argument("--out", type=Path, help="folder to write; $CHORUS_HOME/partners/KIND by default")
    parser.add_argument("--answers", type=Path, default=ANSWERS, help="table of graded answers")
    parser.add_argument("--steps", type=int, default=120, help=f"batches of {BATCH} answers")
    parser.add_argument("--drop", type=int, default=10, help="layers that the pruned one loses")
    parser.add_argument("--report", type=Path, help="JSON file for the report")
    asked = parser.parse_args(arguments)
    out = asked.out or Home.from_environ().root / "partners" / asked.kind
    report = make(
        asked.kind, ensure([SOURCE])[SOURCE], out, asked.answers, steps=asked.steps, drop=asked.drop
    )
    tell(asdict(report), asked.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
