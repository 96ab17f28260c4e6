"""`chorus collect`, `train`, `calibrate`, `evaluate`: from questions to a strategy that has learnt, and
what it is worth."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from gateway.cli.card import show
from gateway.cli.parameters import (
    Config,
    EmbedderKey,
    EmbedderName,
    EmbedderUrl,
    JsonFile,
    Key,
    Options,
    Outcomes,
    Url,
    existing,
    gateway_url,
    options,
    words,
    write_json,
)
from protocol.errors import MethodError, SettingsError

if TYPE_CHECKING:
    from outcomes.collect import Collected, Prompt
    from outcomes.embedder import EmbedderLike

__all__ = ["DEFAULT", "calibrate", "collect", "evaluate", "export", "threshold", "train"]

DEFAULT = "stacking"
"""The router that leads on average over the published tables; docs/training.md says by how much."""


def collect(
    config: Config,
    queries: Annotated[list[Path], typer.Option(help="Query set, JSON lines; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="Outcome table to write (parquet); its journal stands beside it.")
    ],
    models: Annotated[
        str | None, typer.Option(help="Comma-separated names; default: every model that answers.")
    ] = None,
    url: Url = None,
    key: Key = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight at once.")] = 8,
    judge: Annotated[
        str | None, typer.Option(help="The model that grades prompts of the grader `judge`.")
    ] = None,
) -> None:
    """Ask every model every question through a running gateway, grade the answers, write an outcome table.

    Every paid answer goes to a journal at once: interrupt it and call it again, and it goes on where it
    stopped.

    Example (with `chorus serve` running):

        chorus collect config/local.yaml --queries config/queries/basic.jsonl --out outcomes.parquet
    """
    from outcomes.collect import read_prompts
    from protocol.settings import load_settings

    settings = load_settings(config)
    names = words(models) or [name for name, model in settings.models.items() if model.embedder is None]
    known = {*settings.models, *settings.strategies}
    if unknown := [name for name in (*names, *([judge] if judge else [])) if name not in known]:
        raise SettingsError(f"The config has no {unknown[0]!r}; it has {', '.join(sorted(known))}.")
    prompts = [prompt for path in queries for prompt in read_prompts(existing(path))]
    master = settings.server.master_key
    found = asyncio.run(
        _collect(
            prompts,
            names,
            gateway_url(url) if url else f"http://{settings.server.host}:{settings.server.port}",
            key or (master.get_secret_value() if master else None),
            out,
            concurrency,
            judge,
        )
    )
    for failure in found.failures[:10]:
        typer.echo(f"missing: {failure.model} {failure.query_id}: {failure.error}")
    rows = len(prompts) * len(names) - len(found.failures)
    typer.echo(f"{rows} rows in {out}, {found.resumed} from earlier runs, {len(found.failures)} missing")
    if found.failures:
        raise MethodError("Some rows are missing; call the same command again to try only these.")


async def _collect(
    prompts: list[Prompt],
    models: list[str],
    url: str,
    key: str | None,
    out: Path,
    concurrency: int,
    judge: str | None,
) -> Collected:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gateway.cli.client import AsyncClient
    from outcomes import collect as collecting
    from outcomes.grading import Judge

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(prompts) * len(models))

        def show(now: collecting.Progress) -> None:
            told = f"${now.cost_usd:.6f}" + (f", {now.failed} failed" if now.failed else "")
            bar.update(task, completed=now.done, description=told)

        async with AsyncClient(url, key, limit=concurrency) as client:
            return await collecting.collect(
                prompts,
                models,
                client.ask,
                out,
                concurrency=concurrency,
                judge=Judge(client.ask, judge) if judge else None,
                progress=show,
            )


def train(
    outcomes: Outcomes,
    out: Annotated[Path, typer.Option(help="Folder of the artefact to write.")],
    method: Annotated[str, typer.Argument(help="A router of `chorus methods`, e.g. knn-router.")] = DEFAULT,
    embedder: EmbedderName = None,
    embedder_url: EmbedderUrl = None,
    embedder_key: EmbedderKey = None,
    models: Annotated[
        str | None, typer.Option(help="Comma-separated names; default: all of the table.")
    ] = None,
    descriptions: Annotated[
        Path | None,
        typer.Option(help="JSON: name of a model, or of a way to ask it, → what it is like, in words."),
    ] = None,
    option: Options = None,
) -> None:
    """Train a router on an outcome table and write its artefact, metrics card included.

    Part of the queries is held out by a hash of their text; the card is measured on these. Some routers (rtr,
    graphrouter) read descriptions of the models.

    Examples:
        chorus train --outcomes outcomes.parquet --embedder all-minilm-l6-v2-int8 --out my-router

        chorus train knn-router --outcomes outcomes.parquet --embedder all-minilm-l6-v2-int8 --out
        config/artefacts/knn-router
    """
    from gateway.cli.embeddings import chosen_embedder
    from outcomes.fine_tuning import progress_line
    from outcomes.train import train as fit

    manifest = fit(
        method,
        existing(outcomes),
        out,
        embedder=chosen_embedder(embedder, embedder_url, embedder_key),
        options=options(option),
        models=words(models) or None,
        descriptions=_descriptions(descriptions),
        report=progress_line,
    )
    typer.echo(f"{manifest.method} {manifest.version} for {', '.join(manifest.models)} written to {out}")
    show(manifest.metrics)


def export(
    artefact: Annotated[Path, typer.Argument(help="Artefact of a router that is a language model.")],
    out: Annotated[Path, typer.Option(help="Hugging Face folder to write.")],
    agent: Annotated[
        int | None, typer.Option(min=0, help="Which one of several (disrouter), cheapest first.")
    ] = None,
) -> None:
    """Write the language model of a router-r1 or disrouter artefact as a folder that an engine model can name.

    Example:
        chorus export my-r1 --out ~/models/r1
    """
    from outcomes.causal_artefact import export_lm

    export_lm(existing(artefact), out, agent=agent)
    typer.echo(f"written to {out}; serve it with `engine: {{weights: {out}}}`")


def calibrate(
    method: Annotated[
        str, typer.Argument(help="A cascade's scorer of `chorus methods`, e.g. token-uncertainty.")
    ],
    stages: Annotated[str, typer.Option(help="Comma-separated model names, in the order they are asked.")],
    outcomes: Outcomes,
    out: Annotated[Path, typer.Option(help="Folder of the artefact to write.")],
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Aim: defer this share of the queries.")
    ] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(min=0, help="Aim: best score at this mean cost a query.")
    ] = None,
    worth_usd: Annotated[
        float | None, typer.Option(min=0, help="Aim: best worth × score − cost; US dollars.")
    ] = None,
    option: Options = None,
) -> None:
    """Fit a cascade's thresholds on an outcome table, for one aim: --share, --max-cost-usd or --worth-usd.

    Prints and stores the card on held-out queries: the cascade beside each stage alone, deferring at
    random, and an oracle.

    Examples:
        chorus calibrate token-uncertainty --stages small,large --outcomes outcomes.parquet --share 0.3
        --out cascade/

        chorus calibrate token-uncertainty --option variant=chow-quantile --option alpha=0.1 --worth-usd
        0.001 …
    """
    from cascades.artefact import save_cascade
    from cascades.calibrate import Objective
    from cascades.calibrate import calibrate as fit
    from outcomes.table import read_table
    from protocol.methods import find_method, load_method

    found = find_method(method, "scorer")
    try:
        scorer = load_method(found)(**options(option))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{found.id}: {error}.") from None
    table = read_table(existing(outcomes))
    names = words(stages)
    if len(names) < 2:
        raise SettingsError("--stages: a cascade has at least two.")
    rule, card = fit(table, names, scorer, Objective(share, max_cost_usd, worth_usd))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = save_cascade(
        out,
        found,
        names,
        scorer,
        rule,
        {"data": table.only(names).digest(), "metrics": card, "created": created},
    )
    typer.echo(f"{manifest.method} {manifest.version} for {' → '.join(names)} written to {out}")
    show(card)


def evaluate(
    artefact: Annotated[
        Path | None, typer.Argument(help="Folder written by `chorus train` or `chorus calibrate`.")
    ] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option(help="Outcome table to judge the artefact on: parquet, or a folder of .jsonl.gz."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Instead of an artefact: the table that methods are trained on.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="The table they are judged on; default: held-out queries of --train.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated routers to compare; default: every one of `chorus methods`."),
    ] = None,
    embedder: EmbedderName = None,
    embedder_url: EmbedderUrl = None,
    embedder_key: EmbedderKey = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Use every query, of a table the artefact never saw.")
    ] = False,
    json: JsonFile = None,
) -> None:
    """Print what an artefact, or every method trained anew, is worth on held-out queries of an outcome table.

    Scores stand beside each single model, chance, the best model of each task and the oracle, with 95 % bootstrap
    intervals. Without --test, queries are held out by a hash of their text, so that copies never straddle.

    Examples:
        chorus evaluate config/artefacts/knn-router --outcomes outcomes.parquet --embedder
        all-minilm-l6-v2-int8

        chorus evaluate --train outcomes.parquet --methods knn,mf,avengers --embedder all-minilm-l6-v2-int8
    """
    from gateway.cli.embeddings import chosen_embedder

    if (artefact is None) == (train is None):
        raise SettingsError("Name an artefact and --outcomes, or --train (and --test) to compare methods.")
    if train is not None:
        encoder = chosen_embedder(embedder, embedder_url, embedder_key)
        card = _compared(train, test, words(methods), encoder, json)
    elif artefact is not None and outcomes is not None:
        encoder = chosen_embedder(embedder, embedder_url, embedder_key)
        card = _judged(artefact, outcomes, encoder, whole)
        if str(json) != "-":
            show(card)
    else:
        raise SettingsError("--outcomes: say which table to judge the artefact on.")
    if json is not None:
        write_json(card, json)


def threshold(
    artefact: Annotated[Path, typer.Argument(help="Folder of a router, written by `chorus train`.")],
    outcomes: Outcomes,
    strong: Annotated[str, typer.Option(help="Who is asked from the threshold on.")],
    weak: Annotated[str, typer.Option(help="Who is asked below it.")],
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the queries for --strong; default: a table.")
    ] = None,
    embedder: EmbedderName = None,
    embedder_url: EmbedderUrl = None,
    embedder_key: EmbedderKey = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Use every query, of a table the artefact never saw.")
    ] = False,
) -> None:
    """Print which `policy.threshold.alpha` sends what share of held-out queries to the strong model, with the score
    and the US dollars a query that it gives there.

    Example:
        chorus threshold my-mf --outcomes outcomes.parquet --strong gpt-4o --weak gpt-4o-mini --share 0.2
        --embedder all-minilm-l6-v2-int8
    """
    from gateway.cli.embeddings import chosen_embedder
    from outcomes.evaluate import thresholds

    rows = thresholds(
        artefact,
        existing(outcomes),
        strong,
        weak,
        [tenth / 10 for tenth in range(11)] if share is None else [share],
        embedder=chosen_embedder(embedder, embedder_url, embedder_key),
        whole=whole,
    )
    typer.echo("wanted  alpha    sent   score  USD a query")
    for row in rows:
        score = "?" if row.score is None else f"{row.score:.3f}"
        cost = "?" if row.cost_usd is None else f"{row.cost_usd:.3g}"
        typer.echo(f"{row.share:6.0%}  {row.alpha:.4f}  {row.sent:5.0%}  {score:>6}  {cost}")


def _judged(artefact: Path, outcomes: Path, embedder: EmbedderLike | None, whole: bool) -> dict[str, Any]:
    """The card of an artefact, a router's or a cascade's."""
    from outcomes.artefact import read_manifest
    from outcomes.evaluate import evaluate as of_router
    from outcomes.table import read_table, split
    from protocol.methods import methods

    table = read_table(existing(outcomes))
    manifest = read_manifest(artefact)
    if manifest.method in {method.id for method in methods("scorer")}:
        from cascades.artefact import load_cascade
        from cascades.calibrate import evaluate as of_cascade

        _, scorer, rule, _ = load_cascade(artefact, manifest.method)
        return of_cascade(rule, table if whole else split(table)[1], manifest.models, scorer)
    return of_router(artefact, table, embedder=embedder, whole=whole).wire()


def _compared(
    train: Path, test: Path | None, names: list[str], embedder: EmbedderLike | None, json: Path | None
) -> dict[str, Any]:
    """Every method trained on one table and judged on the other, or on held-out queries of the one."""
    from engines.weights import Home
    from gateway.cli.card import show_comparison
    from outcomes.compare import compare, complete
    from outcomes.embedding_cache import embedded
    from outcomes.table import read_table, split
    from protocol.methods import find_method, load_method, methods

    # Fine-tuning takes minutes each: those are compared when they are named.
    quick = [method for method in methods("router") if not method.needs & {"encoder", "language-model"}]
    records = [find_method(name, "router") for name in names] or quick
    tables = [complete(read_table(existing(path))) for path in (train, test) if path is not None]
    if len(tables) > 1:
        shared = [name for name in tables[0].models if name in tables[1].models]
        tables = [table.only(shared) for table in tables]
    if any("embedding" in record.needs for record in records):
        if embedder is None:
            raise SettingsError("--embedder: some of these methods need one, e.g. all-minilm-l6-v2-int8.")
        cache = Home.from_environ().root / "embeddings"
        tables = [embedded(table, embedder, cache) for table in tables]
    seen, held_out = (tables[0], tables[1]) if len(tables) > 1 else split(tables[0])
    found = compare(
        seen,
        held_out,
        {record.id: load_method(record) for record in records},
        progress=lambda name: typer.echo(f"training {name}", err=True),
    )
    if str(json) != "-":
        show_comparison(found)
    return found.wire()


def _descriptions(path: Path | None) -> dict[str, str] | None:
    """Texts by name. Raises `SettingsError`."""
    if path is None:
        return None
    try:
        found = orjson.loads(existing(path).read_bytes())
    except orjson.JSONDecodeError as error:
        raise SettingsError(f"--descriptions: {path} is not JSON: {error}.") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise SettingsError(f"--descriptions: {path} holds no object of names and texts.")
    return found
