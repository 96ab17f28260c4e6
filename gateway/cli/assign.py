"""`chorus assign`: who shall answer each query of a batch, under one budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from gateway.cli.parameters import EmbedderKey, EmbedderName, EmbedderUrl, existing
from protocol.errors import MethodError, SettingsError

__all__ = ["assign"]

TEXT = ("prompt", "query")


def assign(
    artefact: Annotated[Path, typer.Argument(help="Folder of a router, written by `chorus train`.")],
    queries: Annotated[Path, typer.Option(help="JSON lines with `prompt`, or `query`, the text.")],
    budget_usd: Annotated[float, typer.Option(min=0, help="US dollars for the whole batch.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write: those of --queries, with `model`.")],
    exact: Annotated[
        bool, typer.Option("--exact", help="By integer programming: minutes for ten thousand queries.")
    ] = False,
    embedder: EmbedderName = None,
    embedder_url: EmbedderUrl = None,
    embedder_key: EmbedderKey = None,
) -> None:
    """Choose a model for every query of a batch: the most estimated quality in total for --budget-usd.

    Upgrades of highest gain per dollar come first, which is within one query's gain of the best assignment there is;
    --exact finds that. To each line are added `model`, and the `quality` and `cost_usd` that the router expects of it.
    No model is asked.

    Example:
        chorus assign my-router --queries tonight.jsonl --budget-usd 5 --out assigned.jsonl --embedder
        all-minilm-l6-v2-int8
    """
    import numpy as np

    from gateway.cli.embeddings import chosen_embedder
    from outcomes.evaluate import estimate_texts
    from outcomes.metrics import chosen
    from routers.policy import Budget

    records = _records(existing(queries))
    texts = [_text(record) or "" for record in records]
    estimate = estimate_texts(artefact, texts, chosen_embedder(embedder, embedder_url, embedder_key))
    if np.isnan(estimate.cost_usd).any():
        raise MethodError(f"{artefact} does not know what every model costs; a budget needs that.")
    choice = Budget(budget_usd / len(records), exact=exact).choose(estimate)
    quality, cost = chosen(estimate.quality, choice), chosen(estimate.cost_usd, choice)
    names = [estimate.models[column] for column in choice]
    with out.open("wb") as file:
        for record, name, worth, usd in zip(records, names, quality.tolist(), cost.tolist(), strict=True):
            line = {**record, "model": name, "quality": worth, "cost_usd": usd}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    shares = ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())
    typer.echo(f"{len(records)} queries written to {out}: {shares}")
    typer.echo(
        f"expected: quality {quality.mean():.3f} for {cost.sum():.4g} of {budget_usd:g} US dollars; "
        f"the best model of each would have {np.nanmax(estimate.quality, axis=1).mean():.3f}"
    )


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines, each with a text. Raises `SettingsError` naming the one that has none."""
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise SettingsError(f"{path}:{number}: not JSON: {error}.") from None
        if not isinstance(record, dict) or _text(record) is None:
            raise SettingsError(f"{path}:{number}: a line needs a text, as `prompt` or `query`.")
        records.append(record)
    if not records:
        raise SettingsError(f"{path} holds no queries.")
    return records


def _text(record: Mapping[str, Any]) -> str | None:
    return next((record[name] for name in TEXT if isinstance(record.get(name), str)), None)
