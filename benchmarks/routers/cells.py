"""One cell of the leaderboard, (method, source), trained in a process of its own and kept outside git.

A cell is found by what it depends on: the training and test tables, embedder, and its module's source.
Whoever changes shared code below a method names the method in `--again`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from outcomes.compare import Fitted
from outcomes.table import OutcomeTable
from protocol.errors import ChorusError
from protocol.methods import Method, load_method
from protocol.routing import Estimate

__all__ = ["Absent", "Cells"]


class Absent(Exception):
    """A method that has no figures on a source, and why."""


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one source. `limit`: seconds that one method may take."""

    folder: Path
    train: OutcomeTable
    test: OutcomeTable
    embedder: str
    limit: float

    def find(self, method: Method, *, again: bool = False) -> Fitted:
        """The method's cell, from disk or measured now. Raises `Absent` when it fails or takes too long."""
        path = self._path(method)
        failed = path.with_suffix(".json")
        if path.is_file() and not again:
            return self._read(path)
        if not again and (earlier := self._failed(method)):
            raise Absent(earlier)
        self.folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        # Forked, so that the tables need not be copied; a method that takes too long is ended with its process.
        process = multiprocessing.get_context("fork").Process(target=self._measure, args=(method, path))
        process.start()
        process.join(self.limit)
        reason = ""
        if process.is_alive():
            process.kill()
            process.join()
            reason = f"took more than {self.limit:.0f} s"
        elif not path.is_file():
            told = failed.with_suffix(".txt")
            reason = told.read_text() if told.is_file() else f"ended with status {process.exitcode}"
            told.unlink(missing_ok=True)
        if reason:
            failed.write_bytes(orjson.dumps({"reason": reason, "limit": self.limit}))
            raise Absent(reason)
        failed.unlink(missing_ok=True)
        return self._read(path)

    def has(self, method: Method) -> bool:
        """Whether the method was measured before, or failed in no less time than it has now."""
        return self._path(method).is_file() or bool(self._failed(method))

    def _failed(self, method: Method) -> str:
        """Why it failed before in no less time than it has now; nothing where it did not."""
        failed = self._path(method).with_suffix(".json")
        if not failed.is_file():
            return ""
        earlier = orjson.loads(failed.read_bytes())
        return str(earlier["reason"]) if earlier["limit"] >= self.limit else ""

    def _measure(self, method: Method, path: Path) -> None:
        make: Callable[[], object] = load_method(method)
        try:
            found = Fitted.of(make, self.train, self.test)
        except ChorusError as error:
            path.with_suffix(".txt").write_text(error.message)
            return
        draft = path.with_suffix(".tmp")
        figures = np.array([found.fit_s, found.artefact_bytes, found.estimate_ms])
        with draft.open("wb") as file:
            np.savez_compressed(
                file, quality=found.estimate.quality, cost_usd=found.estimate.cost_usd, figures=figures
            )
        draft.replace(path)

    def _read(self, path: Path) -> Fitted:
        with np.load(path, allow_pickle=False) as kept:
            fit_s, size, estimate_ms = map(float, kept["figures"])
            estimate = Estimate(self.test.models, kept["quality"], kept["cost_usd"])
        return Fitted(estimate, fit_s, int(size), estimate_ms)

    def _path(self, method: Method) -> Path:
        return self.folder / f"{method.id}-{self._key(method)}.npz"

    def _key(self, method: Method) -> str:
        source = Path(__file__).parents[2] / Path(*method.module.split(".")).with_suffix(".py")
        parts = [self.train.digest(), self.test.digest(), self.embedder, method.id]
        hashed = hashlib.sha256("\n".join(parts).encode() + source.read_bytes())
        return hashed.hexdigest()[:16]
