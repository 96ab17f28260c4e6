"""What fine-tuning of encoders and language models shares: settings, batches, steps, checkpoints, and torch on demand.

torch is imported when training starts and never by who serves the result. All randomness of a training is a function
of the seed and the step, so that one that was interrupted and goes on ends in the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from protocol.errors import MethodError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = [
    "Checkpoint",
    "FineTuning",
    "like_lengths",
    "progress_line",
    "start_folder",
    "threads",
    "torch_module",
]


WARMUP = 0.06
"""The share of the steps in which the rate rises."""


@dataclass(kw_only=True, eq=False)
class FineTuning:
    """How a pretrained network is trained further; every router that does so takes these settings.

    `start`: a folder, or a weights id. `threads`: one by default, because torch's wait for one another at every
    product and crawl on busy cores. `checkpoint`: a folder to write the state to now and then and to go on from.
    `report` is told (step, steps, loss).
    """

    start: str = ""
    batch: int = 16
    threads: int = 1
    seed: int = 0
    checkpoint: str = ""
    report: Callable[[int, int, float], None] | None = None

    @property
    def slow(self) -> bool:
        """It reads every query with the network that was trained (`protocol.routing.Slow`)."""
        return True

    def recipe(self) -> dict[str, Any]:
        """The settings as parameters of an artefact: all that shaped the weights, no path of this machine."""
        names = [field.name for field in fields(self) if field.name not in ("checkpoint", "report")]
        return {name: getattr(self, name) for name in names} | {"start": Path(self.start).name}

    def mark(self, read: Sequence[Any], learnt: Mapping[str, torch.Tensor]) -> str:
        """What a checkpoint must agree in: the recipe, what is `read` (JSON values), and where training starts."""
        hashed = hashlib.sha256(orjson.dumps([self.recipe(), *read], option=orjson.OPT_SORT_KEYS))
        for name in sorted(learnt):
            hashed.update(learnt[name].detach().numpy().tobytes())
        return hashed.hexdigest()

    def learn(
        self,
        loss: Callable[[], torch.Tensor],
        learnt: Mapping[str, torch.Tensor],
        optimiser: Any,
        rates: Sequence[float],
        step: int,
        steps: int,
    ) -> float:
        """Step number `step` of `steps`, which scale the `rates` of the optimiser's groups: a warm-up, then a linear
        fall. Chance in `loss` is a function of the seed and the step. Returns the loss."""
        torch = torch_module()
        scale = min((step + 1) / max(1.0, WARMUP * steps), 1 - step / steps)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        torch.manual_seed(self.seed * 1_000_003 + step)
        found = loss()
        optimiser.zero_grad()
        torch.autograd.backward(found)
        torch.nn.utils.clip_grad_norm_(list(learnt.values()), 1.0)
        optimiser.step()
        value = float(found.detach())
        if self.report is not None:
            self.report(step + 1, steps, value)
        return value


def progress_line(step: int, steps: int, loss: float) -> None:
    """A `report` for terminals: one line that keeps being written over."""
    import sys

    end = "\n" if step == steps else "\r"
    sys.stderr.write(f"step {step}/{steps}  loss {loss:.4f}{end}")


def start_folder(start: str, what: str) -> Path:
    """Where `start` lies: a folder, or a weights id under `$CHORUS_HOME/weights`. Raises `MethodError`, naming
    `what` is missing."""
    home = Path(os.environ.get("CHORUS_HOME") or Path.home() / ".cache" / "chorus")
    folder = Path(start) if Path(start).is_dir() else home / "weights" / start
    if not start or not folder.is_dir():
        raise MethodError(
            f"There is no {what} {start!r}: neither a folder nor weights at {folder}; `chorus models pull` "
            "fetches known ones."
        )
    return folder


class Checkpoint:
    """The state of a training between its epochs (or rounds), in a folder; without a folder, nothing. `mark`: what
    another call must agree in to go on."""

    def __init__(self, folder: str, mark: str) -> None:
        self.path = Path(folder) / "checkpoint.safetensors" if folder else None
        self.mark = mark

    def keep(
        self, epochs: int, losses: list[float], learnt: Mapping[str, torch.Tensor], optimiser: Any
    ) -> None:
        if self.path is None:
            return
        from safetensors.numpy import save_file

        state = optimiser.state
        tensors = {f"value.{name}": value.detach().numpy() for name, value in learnt.items()}
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            tensors |= {f"{moment}.{name}": state[value][moment].numpy() for name, value in learnt.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        about = {"mark": self.mark, "epochs": str(epochs), "losses": orjson.dumps(losses).decode()}
        save_file(tensors, draft, metadata=about)
        draft.replace(self.path)

    def resume(self, learnt: Mapping[str, torch.Tensor], optimiser: Any) -> tuple[list[float], int]:
        """Losses so far and epochs done; puts values and moments back. Raises `MethodError` for another training's
        checkpoint."""
        if self.path is None or not self.path.is_file():
            return [], 0
        from safetensors import safe_open

        torch = torch_module()
        with safe_open(self.path, framework="np") as file:
            about = file.metadata() or {}
            if about.get("mark") != self.mark:
                raise MethodError(f"{self.path} is of another training; name another checkpoint folder.")
            with torch.no_grad():
                for name, value in learnt.items():
                    value.copy_(torch.from_numpy(file.get_tensor(f"value.{name}")))
                    optimiser.state[value] = {
                        moment: torch.from_numpy(file.get_tensor(f"{moment}.{name}"))
                        for moment in ("exp_avg", "exp_avg_sq", "step")
                    }
        return list(orjson.loads(about["losses"])), int(about["epochs"])


def torch_module() -> Any:
    """`torch`. Raises `MethodError` saying how to get it."""
    try:
        import torch
    except ImportError:
        raise MethodError(
            "Fine-tuning needs torch: pip install 'chorus-gateway[engines]' (see docs/install.md)."
        ) from None
    return torch


@contextmanager
def threads(torch: Any, wanted: int) -> Iterator[None]:
    """Torch's number of threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def like_lengths(
    ids: Sequence[Sequence[int]], batch: int, seed: tuple[int, ...]
) -> Iterator[NDArray[np.intp]]:
    """Rows of every batch of an epoch, in random order. Texts of like length share a batch, so that little is padded:
    shuffled rows are sorted by length within stretches of sixteen batches."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(ids))
    lengths = np.array([len(row) for row in ids])
    stretch = 16 * batch
    found = []
    for start in range(0, len(rows), stretch):
        part = rows[start : start + stretch]
        part = part[np.argsort(lengths[part], kind="stable")]
        found += [part[i : i + batch] for i in range(0, len(part), batch)]
    for i in rng.permutation(len(found)):
        yield found[i]
