"""Fine-tuning a small encoder: one trainer, whose target is a loss function (see `outcomes.encoder_losses`).

torch is imported when training starts and never by who serves the result. AdamW with a warm-up and a linear fall of
the rate; the head learns at its own, higher rate, because on CPU-sized budgets it starts from nothing while the
encoder starts from good sentence vectors. The embedding tables stay as they came: on a few thousand queries nearly
all of their rows see no gradient. All randomness is a function of the seed and the step, so that a training that was
interrupted and goes on ends in the same weights as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from outcomes.encoder import Encoder, TrainedEncoder, starting_encoder
from outcomes.fine_tuning import Checkpoint, FineTuning, like_lengths, threads, torch_module

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Loss = Callable[[NDArray[np.intp], "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    """(training rows of the batch, outputs (n, n_outputs), pooled vectors (n, dimensions)) → the batch's mean loss."""

__all__ = ["EncoderTraining"]

DROPOUT = 0.1
HEAD = ("head.weight", "head.bias")


@dataclass(kw_only=True, eq=False)
class EncoderTraining(FineTuning):
    """How an encoder is trained: what every encoder router takes.

    `start`: a folder of a BERT model, or a weights id. `layers`: how many of its upper layers learn (0: the head
    alone). `rate` of the encoder and `head_rate` of the head, `decay` of both; `max_tokens` read of a text.
    `precision` of the products: bfloat16 is twice as fast where the CPU has it, and the weights stay float32.
    `threads`: one by default, because torch's wait for one another at every product and crawl on busy cores.
    `checkpoint`: a folder to write the state to after every epoch and to go on from. `report` is told (step, steps,
    loss).
    """

    start: str = "all-minilm-l6-v2"
    epochs: int = 3
    rate: float = 1e-4
    head_rate: float = 2e-3
    decay: float = 0.01
    max_tokens: int = 128
    layers: int = 6
    precision: Literal["float32", "bfloat16"] = "float32"

    def starting_encoder(self, truncate: str = "right") -> Encoder:
        """The encoder training starts from. Raises `MethodError`."""
        return starting_encoder(self.start, max_tokens=self.max_tokens, truncate=truncate)

    def pooled(self, encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
        """`encoder.pooled`, by torch in batches: for the many texts of a training set. Raises `MethodError`."""
        torch = torch_module()
        values = {name: torch.tensor(value) for name, value in encoder.weights.items()}
        ids = encoder.tokens(texts)
        found = np.empty((len(ids), encoder.dimensions), dtype=np.float32)
        order = np.argsort([len(row) for row in ids], kind="stable")
        with torch.no_grad(), threads(torch, self.threads):
            for start in range(0, len(order), 32):
                rows = order[start : start + 32]
                found[rows] = _pooled(values, encoder, [ids[row] for row in rows], 0.0).numpy()
        return found

    def train(
        self, encoder: Encoder, texts: Sequence[str], outputs: int, loss: Loss, *, unit: bool = False
    ) -> TrainedEncoder:
        """`encoder` and a new head with `outputs`, trained on `texts` for `loss`. `unit`: outputs are cosines of the
        pooled vector with learnt directions. Raises `MethodError`."""
        torch = torch_module()
        names = _trainable(encoder, self.layers)
        values = {name: torch.tensor(value) for name, value in encoder.weights.items()}
        with torch.random.fork_rng(devices=[]), threads(torch, self.threads):
            torch.manual_seed(self.seed)
            size = encoder.dimensions
            values["head.weight"] = torch.randn(size, outputs) * (1.0 if unit else 0.02)
            values["head.bias"] = torch.zeros(outputs)
            heads = HEAD[:1] if unit else HEAD
            for name in (*names, *heads):
                values[name].requires_grad_()
            groups = [
                {"params": [values[name] for name in names], "lr": self.rate},
                {"params": [values[name] for name in heads], "lr": self.head_rate},
            ]
            optimiser = torch.optim.AdamW(groups, weight_decay=self.decay)
            learnt = {name: values[name] for name in (*names, *heads)}
            losses = self._run(torch, encoder, texts, values, learnt, optimiser, loss, unit)
        found = {name: value.detach().numpy().astype(np.float32) for name, value in values.items()}
        weight, bias = (found.pop(name) for name in HEAD)
        if unit:
            weight = weight / np.linalg.norm(weight, axis=0, keepdims=True)
        return TrainedEncoder(replace(encoder, weights=found), weight, bias, unit, losses)

    def _run(
        self,
        torch: Any,
        encoder: Encoder,
        texts: Sequence[str],
        values: Mapping[str, torch.Tensor],
        learnt: Mapping[str, torch.Tensor],
        optimiser: Any,
        loss: Loss,
        unit: bool,
    ) -> NDArray[np.float32]:
        """Change `values` in place. Returns the loss of every step."""
        ids = encoder.tokens(texts)
        per_epoch = -(-len(ids) // self.batch)
        steps = self.epochs * per_epoch
        state = Checkpoint(self.checkpoint, self.mark([list(texts)], learnt))
        losses, done = state.resume(learnt, optimiser)
        rates = (self.rate, self.head_rate)

        def found(rows: NDArray[np.intp]) -> torch.Tensor:
            # Entered anew at every step: it keeps casts of the weights for as long as it lasts.
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                pooled = _pooled(values, encoder, [ids[row] for row in rows], DROPOUT).float()
            return loss(rows, _outputs(values, pooled, unit), pooled)

        for epoch in range(done, self.epochs):
            for i, rows in enumerate(like_lengths(ids, self.batch, (self.seed, epoch))):
                step = epoch * per_epoch + i
                losses.append(self.learn(partial(found, rows), learnt, optimiser, rates, step, steps))
            state.keep(epoch + 1, losses, learnt, optimiser)
        return np.array(losses, dtype=np.float32)


def _trainable(encoder: Encoder, layers: int) -> list[str]:
    """Names of the weights of the upper `layers` layers."""
    depth = sum(name.endswith("intermediate.dense.bias") for name in encoder.weights)
    open_ = tuple(f"encoder.layer.{i}." for i in range(max(0, depth - layers), depth))
    return [name for name in encoder.weights if name.startswith(open_)] if open_ else []


def _outputs(values: Mapping[str, torch.Tensor], pooled: torch.Tensor, unit: bool) -> torch.Tensor:
    from torch.nn import functional as f

    weight = values["head.weight"]
    if unit:
        return f.normalize(pooled, dim=1) @ f.normalize(weight, dim=0)
    return f.dropout(pooled, DROPOUT) @ weight + values["head.bias"]


def _pooled(
    w: Mapping[str, torch.Tensor], encoder: Encoder, ids: Sequence[Sequence[int]], dropout: float
) -> torch.Tensor:
    """Mean of the last hidden states of a padded batch, shape (n, dimensions)."""
    import torch
    from torch.nn import functional as f

    heads, eps = encoder.shape.heads, encoder.shape.eps
    n, longest = len(ids), max(map(len, ids))
    tokens, mask = torch.zeros(n, longest, dtype=torch.long), torch.zeros(n, longest)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return f.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"]
        return f.layer_norm(x, weight.shape, weight, bias, eps)

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + w["embeddings.position_embeddings.weight"][:longest], "embeddings")
    seen = mask[:, None, None, :].bool()
    for i in range(sum(name.endswith("intermediate.dense.bias") for name in w)):
        at = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{part}").view(n, longest, heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = f.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        mixed = mixed.transpose(1, 2).reshape(n, longest, -1)
        out = f.dropout(linear(mixed, f"{at}.attention.output.dense"), dropout)
        x = norm(x + out, f"{at}.attention.output")
        inner = f.gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + f.dropout(linear(inner, f"{at}.output.dense"), dropout), f"{at}.output")
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
