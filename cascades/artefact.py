"""A calibrated cascade on disk: which scorer, its parameters, the stages in order and their thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cascades.base import Rule, Scorer
from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from protocol.errors import ArtefactMismatch, MethodError
from protocol.methods import Method, find_method, load_method

__all__ = ["load_cascade", "save_cascade"]


def save_cascade(
    folder: Path,
    method: Method,
    stages: Sequence[str],
    scorer: Scorer,
    rule: Rule,
    manifest: Mapping[str, Any],
) -> Manifest:
    """Write the artefact. `manifest`: further fields of it (`data`, `metrics`, `created`)."""
    fields = Manifest(
        method=method.id, models=tuple(stages), parameters={"scorer": dict(scorer.parameters)}, **manifest
    )
    return save_artefact(folder, fields, {"thresholds": np.array(rule.thresholds, dtype=np.float64)})


def load_cascade(
    folder: Path, method: str, stages: Sequence[str] | None = None
) -> tuple[Method, Scorer, Rule, Manifest]:
    """The method, scorer, rule and manifest that `folder` holds.

    Raises `ArtefactMismatch` when it was made for another method or other `stages` (None: not checked),
    `MethodError` when it is missing or malformed, `SettingsError` for an unknown method.
    """
    found = find_method(method, "scorer")
    manifest, tensors = load_artefact(folder, method=found.id)
    if stages is not None and manifest.models != tuple(stages):
        raise ArtefactMismatch(
            f"The cascade artefact {folder} was calibrated for {' → '.join(manifest.models)}, but the config "
            f"has {' → '.join(stages)}. Calibrate anew with `chorus calibrate`."
        )
    thresholds = tensor(tensors, "thresholds", (len(manifest.models) - 1,), finite=False)
    try:
        scorer: Scorer = load_method(found)(**manifest.parameters["scorer"])
        return found, scorer, Rule(tuple(map(float, thresholds))), manifest
    except (KeyError, TypeError, ValueError) as error:
        raise MethodError(f"{folder} is not an artefact of {found.id}: {error}.") from None
