"""All commands of `chorus` on one page."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import (
    assign,
    catalogue,
    chat,
    doctor,
    inspect,
    keys,
    learn,
    ledger,
    outcomes,
    replay,
    serve,
    spans,
    teach,
    top,
    usage,
    weights,
)

__all__ = ["application"]

application = typer.Typer(
    help="One OpenAI-compatible endpoint in front of many language models, that decides who answers and how.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"chorus {version('chorus-gateway')}")
        except PackageNotFoundError:
            typer.echo("chorus, not installed: run from its sources")
        raise typer.Exit


@application.callback()
def _chorus(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell it and exit.")
    ] = False,
) -> None: ...


application.command()(serve.serve)
application.command()(serve.engines)
application.add_typer(weights.group, name="models")
application.add_typer(keys.group, name="keys")
application.add_typer(usage.group, name="usage")
application.add_typer(ledger.group, name="ledger")
application.command()(learn.collect)
application.command()(learn.train)
application.command()(learn.export)
application.command()(learn.calibrate)
application.command()(learn.evaluate)
application.command()(learn.threshold)
application.command()(assign.assign)
application.command()(replay.replay)
application.command()(teach.teach)
application.add_typer(outcomes.group, name="outcomes")
application.add_typer(spans.group, name="spans")
application.command()(catalogue.methods)
application.command()(inspect.check)
application.command()(inspect.schema)
application.command()(top.top)
application.command()(doctor.doctor)
application.command()(chat.chat)
