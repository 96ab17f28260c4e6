"""Training: from an outcome table to an artefact that knows how good it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from outcomes.artefact import Manifest, annotate, options_of
from outcomes.assignment import calibrate_knob
from outcomes.embedder import EmbedderLike
from outcomes.evaluate import TEST_SHARE, evaluate_router
from outcomes.fine_tuning import FineTuning
from outcomes.table import OutcomeTable, read_table, split
from protocol.errors import MethodError, SettingsError
from protocol.methods import find_method, load_method

__all__ = ["train"]


def train(
    method: str,
    table: OutcomeTable | Path,
    out: Path,
    *,
    embedder: EmbedderLike | None = None,
    options: Mapping[str, Any] | None = None,
    models: Sequence[str] | None = None,
    descriptions: Mapping[str, str] | None = None,
    test_share: float = TEST_SHARE,
    calibration_share: float = 0.15,
    resamples: int = 1000,
    seed: int = 0,
    report: Callable[[int, int, float], None] | None = None,
) -> Manifest:
    """Fit the router `method` (id or alias) with its `options`, calibrate its quality knob, evaluate it,
    and write the artefact to `out`.

    The table is split three ways by query text: the router learns from one part, the knob is calibrated on
    `calibration_share` of the rest, and the metrics card is measured on `test_share` of all, which neither
    has seen. `models` restricts the pool; `descriptions` say in words what models (and ways to ask them) are like, for
    methods that read them; `report` hears (step, steps, loss) of a fine-tuning.
    Raises `MethodError`, `SettingsError`.
    """
    record = find_method(method, "router")
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file; an artefact is a folder of its own.")
    kind = load_method(record)
    chosen = options_of(kind, options or {}, record.id)
    table = read_table(table) if isinstance(table, Path) else table
    table = table.only(models) if models else table
    data = table.digest()
    if "embedding" in record.needs:
        if embedder is None:
            raise MethodError(f"{record.id} needs an embedder, such as --embedder all-minilm-l6-v2-int8.")
        table = table.embedded(embedder.embed(table.queries.texts))
    seen, test = split(table, test_share)
    learn, calibration = split(seen, calibration_share, salt="calibration")
    if not len(learn) or not len(calibration) or not len(test):
        raise MethodError(
            f"{len(table)} queries are too few to split into training, calibration and test parts."
        )
    told: dict[str, Any] = {"report": report} if issubclass(kind, FineTuning) else {}
    if descriptions:
        told["described"] = _described(descriptions, embedder, kind, record.id)
    try:
        router = kind(**chosen, **told).fit(learn)
        knob = calibrate_knob(router.estimate(calibration.queries))
        card = evaluate_router(router, test, knob, resamples=resamples, seed=seed)
    except (ArithmeticError, IndexError, ValueError) as error:
        if not chosen:
            raise
        # No method checks every bound of its numbers.
        raise MethodError(f"{record.id} cannot be trained with {chosen}: {error}.") from error
    router.save(out)
    return annotate(
        out,
        embedder=embedder.id if embedder is not None and "embedding" in record.needs else "",
        data=data,
        metrics=card.wire(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        knob=knob.wire(),
    )


def _described(
    descriptions: Mapping[str, str], embedder: EmbedderLike | None, kind: type, method: str
) -> dict[str, Any]:
    """The vector of every description, by name. Raises `MethodError` for a method that reads none."""
    if embedder is None or "described" not in inspect.signature(kind).parameters:
        raise MethodError(f"{method} reads no descriptions of models.")
    return dict(zip(descriptions, embedder.embed(list(descriptions.values())), strict=True))
