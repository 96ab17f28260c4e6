"""Fine-tuning a causal language model with low-rank adapters: one trainer, whose target is a loss function.

    W·x  →  W·x + scale·B·A·x,   A random, B zero        (LoRA: Hu et al., 2021)

Only A and B of the attention's query and value products in the upper `layers` learn, and whatever rows or heads a
method adds (`extra`); the base stays as it came. AdamW, a warm-up, a linear fall of the rate. torch is imported when
training starts; its forward pass here is the one of `outcomes.causal_lm`, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from outcomes.causal_lm import CausalLm, rotation
from outcomes.fine_tuning import Checkpoint, FineTuning, like_lengths, threads, torch_module

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Loss = Callable[[NDArray[np.intp], "Batch"], "torch.Tensor"]
    """(training rows of the batch, the batch as the model read it) → the batch's mean loss."""
    BatchLoss = Callable[["Batch"], "torch.Tensor"]

__all__ = ["Batch", "CausalTraining", "Learner", "TrainedLm"]

KEPT_EVERY = 10
"""Rounds between checkpoints."""
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj")


@dataclass(frozen=True, eq=False)
class TrainedLm:
    """A language model with its adapter, the `extra` tensors learnt with it, and the `losses` of every step."""

    lm: CausalLm
    extra: Mapping[str, NDArray[np.float32]]
    losses: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts as the model read them: `ids`, padded on the right, (n, longest); `lengths` (n,); `states` after the last
    norm, (n, longest, dimensions); the method's `extra` tensors; `head`, the rows of the vocabulary."""

    ids: torch.Tensor
    lengths: torch.Tensor
    states: torch.Tensor
    extra: Mapping[str, torch.Tensor]
    head: torch.Tensor

    @property
    def last(self) -> torch.Tensor:
        """States of every text's last token, shape (n, dimensions)."""
        import torch

        return self.states[torch.arange(len(self.ids)), self.lengths - 1]

    def log_probabilities(self, starts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Natural-log probability of every token given those before, and whether it counts: from each text's `starts`
        on. Both of shape (n, longest − 1), for the tokens 1 … longest − 1."""
        import torch

        at = torch.arange(1, self.ids.shape[1])
        counts = (at >= torch.tensor(starts)[:, None]) & (at < self.lengths[:, None])
        found = self.states.new_zeros(counts.shape)
        logits = torch.nn.functional.linear(self.states[:, :-1][counts], self.head.float())
        wanted = self.ids[:, 1:][counts]
        found[counts] = torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0]
        return found, counts


@dataclass(kw_only=True, eq=False)
class CausalTraining(FineTuning):
    """How a language model is fine-tuned: what every language-model router takes.

    `start`: a folder of a Llama model, or a weights id. `rank` of the adapters in the upper `layers`, and their `scale`
    (what others write as α / rank).
    `rate` of learning. `max_tokens` read of a query; of a longer one, the last. `precision` of the products:
    bfloat16 is far faster where the CPU has it.
    """

    start: str = "smollm2-135m-instruct"
    epochs: int = 2
    batch: int = 8
    rate: float = 1e-3
    rank: int = 8
    scale: float = 2.0
    layers: int = 12
    max_tokens: int = 128
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    @contextmanager
    def learner(
        self, lm: CausalLm, extra: Mapping[str, NDArray[np.float32]] | None = None
    ) -> Iterator[Learner]:
        """A learner of `lm` with new adapters and `extra` tensors, for as long as the context lasts. Raises
        `MethodError` without torch."""
        torch = torch_module()
        with torch.random.fork_rng(devices=[]), threads(torch, self.threads):
            torch.manual_seed(self.seed)
            yield Learner.of(torch, self, lm, extra or {})

    def train(
        self,
        lm: CausalLm,
        sequences: Sequence[Sequence[int]],
        loss: Loss,
        extra: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> TrainedLm:
        """`lm` trained for `loss` on texts given as token ids. Raises `MethodError`."""
        with self.learner(lm, extra) as learner:
            learner.run(sequences, loss, self.epochs)
            return learner.trained()


@dataclass(eq=False)
class Learner:
    """A language model while it learns: `weights` of the base in the products' precision, `learnt` tensors in
    float32."""

    torch: Any
    settings: CausalTraining
    lm: CausalLm
    weights: Mapping[str, torch.Tensor]
    learnt: dict[str, torch.Tensor]
    optimiser: Any
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, torch: Any, settings: CausalTraining, lm: CausalLm, extra: Mapping[str, NDArray[np.float32]]
    ) -> Learner:
        precision = getattr(torch, settings.precision)
        weights = {name: torch.tensor(value, dtype=precision) for name, value in lm.weights.items()}
        learnt = {f"extra.{name}": torch.tensor(value, dtype=torch.float32) for name, value in extra.items()}
        for i in range(max(0, lm.depth - settings.layers), lm.depth):
            for part in ADAPTED:
                name = f"layers.{i}.{part}"
                wide, narrow = lm.weights[f"{name}.weight"].shape
                learnt[f"lora.{name}.a"] = torch.randn(settings.rank, narrow) * narrow**-0.5
                learnt[f"lora.{name}.b"] = torch.zeros(wide, settings.rank)
        for value in learnt.values():
            value.requires_grad_()
        optimiser = torch.optim.AdamW(list(learnt.values()), lr=settings.rate, weight_decay=0.0)
        return cls(torch, settings, lm, weights, learnt, optimiser)

    def run(self, sequences: Sequence[Sequence[int]], loss: Loss, epochs: int, *, stage: str = "") -> None:
        """Learn from `sequences` for some epochs, going on from the checkpoint if there is one. `stage` names this part
        of a training that has several. Raises `MethodError`."""
        settings = self.settings
        per_epoch = -(-len(sequences) // settings.batch)
        steps = epochs * per_epoch
        state = self._checkpoint(stage, self.mark(sequences))
        before = len(self.losses)
        found, done = state.resume(self.learnt, self.optimiser)
        self.losses += found
        for epoch in range(done, epochs):
            for i, rows in enumerate(like_lengths(sequences, settings.batch, (settings.seed, epoch))):
                step = epoch * per_epoch + i
                self.step(
                    [sequences[row] for row in rows], partial(loss, rows), step, steps, self.settings.rate
                )
            state.keep(epoch + 1, self.losses[before:], self.learnt, self.optimiser)

    def play(
        self,
        rounds: int,
        play: Callable[[int], tuple[list[list[int]], BatchLoss]],
        *,
        mark: str,
        rate: float,
    ) -> None:
        """Learn from what the model itself says: in each of `rounds`, `play(round)` gives texts and their loss, for one
        step of a new optimiser at `rate`. Goes on from the checkpoint if there is one; `mark`: what rounds are played
        for. Raises `MethodError`."""
        self.optimiser = self.torch.optim.AdamW(list(self.learnt.values()), lr=rate, weight_decay=0.0)
        state = self._checkpoint("rounds", self.mark([[*mark.encode()]]))
        before = len(self.losses)
        found, done = state.resume(self.learnt, self.optimiser)
        self.losses += found
        for r in range(done, rounds):
            self.step(*play(r), r, rounds, rate)
            if (r + 1) % KEPT_EVERY == 0 or r + 1 == rounds:
                state.keep(r + 1, self.losses[before:], self.learnt, self.optimiser)

    def sample(
        self, prompt: Sequence[int], n: int, most: int, done: Callable[[list[int]], bool], seed: int
    ) -> list[list[int]]:
        """`n` continuations of `prompt`, sampled at temperature 1 until `done` or `most` tokens."""
        torch = self.torch
        chance = torch.Generator().manual_seed(seed)
        said: list[list[int]] = [[] for _ in range(n)]
        with torch.no_grad():
            states, past = self.read(torch.tensor([list(prompt)]))
            past, states = _of_all(past, n), states.expand(n, -1, -1)
            for _ in range(most):
                logits = torch.nn.functional.linear(states[:, -1].to(self.head.dtype), self.head).float()
                tokens = torch.multinomial(torch.softmax(logits, -1), 1, generator=chance)
                for row, token in zip(said, tokens[:, 0].tolist(), strict=True):
                    if not done(row):
                        row.append(token)
                if all(map(done, said)):
                    break
                states, past = self.read(tokens, past)
        return said

    def step(
        self, sequences: Sequence[Sequence[int]], loss: BatchLoss, step: int, steps: int, rate: float
    ) -> None:
        """One step of the optimiser: step number `step` of `steps`, which scale the `rate`."""
        value = self.settings.learn(
            lambda: loss(self.batch(sequences)), self.learnt, self.optimiser, (rate,), step, steps
        )
        self.losses.append(value)

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """What the model makes of `sequences`. What all of them begin with is read once."""
        torch = self.torch
        n, lengths = len(sequences), torch.tensor([len(row) for row in sequences])
        ids = torch.zeros(n, int(lengths.max()), dtype=torch.long)
        for i, row in enumerate(sequences):
            ids[i, : len(row)] = torch.tensor(row)
        shared = _shared(sequences)
        if 0 < shared < ids.shape[1]:
            first, past = self.read(ids[:1, :shared])
            states, _ = self.read(ids[:, shared:], _of_all(past, n))
            states = torch.cat([first.expand(n, -1, -1), states], 1)
        else:
            states, _ = self.read(ids)
        extra = {
            name.removeprefix("extra."): value
            for name, value in self.learnt.items()
            if name.startswith("extra.")
        }
        return Batch(ids, lengths, states, extra, self.head)

    @property
    def head(self) -> torch.Tensor:
        return self.weights.get("lm_head.weight", self.weights["embed_tokens.weight"])

    def read(self, ids: torch.Tensor, past: Any = None) -> tuple[torch.Tensor, Any]:
        """States (float32) of `ids`, shape (n, n_tokens), that follow `past`, and the longer past. Padding on the right
        needs no mask: no earlier token sees it."""
        torch, w, shape = self.torch, self.weights, self.lm.shape
        f = torch.nn.functional
        n, length = ids.shape
        start = past[0][0].shape[2] if past else 0
        size = w["layers.0.self_attn.q_proj.weight"].shape[0] // shape.heads
        x = w["embed_tokens.weight"][ids]
        positions = np.arange(start, start + length)
        cos, sin = (torch.tensor(value) for value in rotation(positions, size, shape.theta))

        def norm(x: Any, name: str) -> Any:
            raised = x.float()
            scale = torch.rsqrt((raised**2).mean(-1, keepdim=True) + shape.eps)
            return (raised * scale * w[f"{name}.weight"].float()).to(x.dtype)

        def turned(x: Any) -> Any:
            half = size // 2
            other = torch.cat([-x[..., half:], x[..., :half]], -1)
            return (x.float() * cos + other.float() * sin).to(x.dtype)

        seen = torch.ones(length, start + length, dtype=torch.bool).tril(start)
        seen = seen.repeat(shape.heads // shape.kv_heads, 1)
        kept = []
        for i in range(self.lm.depth):
            at = f"layers.{i}"
            y = norm(x, f"{at}.input_layernorm")
            q, k, v = (
                self._product(y, f"{at}.self_attn.{part}_proj").view(n, length, -1, size).transpose(1, 2)
                for part in "qkv"
            )
            q, k = turned(q), turned(k)
            if past:
                k, v = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], v], 2)
            kept.append((k, v))
            # Heads that share keys stand one below the other, so that keys need not be repeated.
            grouped = q.reshape(n, shape.kv_heads, -1, size)
            mixed = f.scaled_dot_product_attention(grouped, k, v, attn_mask=seen).view(q.shape)
            x = x + self._product(mixed.transpose(1, 2).reshape(n, length, -1), f"{at}.self_attn.o_proj")
            y = norm(x, f"{at}.post_attention_layernorm")
            inner = f.silu(self._product(y, f"{at}.mlp.gate_proj")) * self._product(y, f"{at}.mlp.up_proj")
            x = x + self._product(inner, f"{at}.mlp.down_proj")
        return norm(x, "norm").float(), kept

    def trained(self) -> TrainedLm:
        """What was learnt so far."""
        scale = self.settings.scale
        found = {name: value.detach().numpy().copy() for name, value in self.learnt.items()}
        adapter = {
            name[len("lora.") : -len(".a")]: (value, found[f"{name[:-2]}.b"] * np.float32(scale))
            for name, value in found.items()
            if name.startswith("lora.") and name.endswith(".a")
        }
        extra = {name.removeprefix("extra."): found[name] for name in found if name.startswith("extra.")}
        return TrainedLm(self.lm.adapted(adapter), extra, np.array(self.losses, dtype=np.float32))

    def mark(self, sequences: Sequence[Sequence[int]]) -> str:
        """What a checkpoint must agree in."""
        return self.settings.mark([self.lm.digest, [list(row) for row in sequences]], self.learnt)

    def _checkpoint(self, stage: str, mark: str) -> Checkpoint:
        folder = self.settings.checkpoint
        return Checkpoint(str(Path(folder) / stage) if folder else "", mark)

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        f = self.torch.nn.functional
        y = f.linear(x, self.weights[f"{name}.weight"])
        if (a := self.learnt.get(f"lora.{name}.a")) is not None:
            b = self.learnt[f"lora.{name}.b"]
            scale = self.settings.scale
            y = y + f.linear(f.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scale
        return y


def _of_all(past: Any, n: int) -> Any:
    """The past of one text as that of `n`."""
    return [(k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in past]


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    for i, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return i
    return min(map(len, sequences))
