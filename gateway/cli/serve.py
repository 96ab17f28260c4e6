"""`chorus serve` and `chorus engines`: the processes that run in production."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.parameters import Config

__all__ = ["engines", "serve"]


def serve(
    config: Config = Path("config/local.yaml"),
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: server.host of the config.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: server.port of the config, 8080.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Gateway processes; default: server.workers.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Admin API and probes; default 8081.")
    ] = None,
) -> None:
    """Start the gateway, with its engine host and embedder when the config has local models.

    Ends with a ready line, the names to call and a curl line to paste. Local weights must be here already:
    `chorus models pull` fetches them. Ctrl-C or SIGTERM stops everything that was started.

    Examples:
        chorus serve

        chorus serve config/openai.yaml --port 9000 --workers 4
    """
    from gateway.supervisor import serve as run
    from protocol.settings import load_settings

    status = run(load_settings(config), config, host=host, port=port, workers=workers, admin_port=admin_port)
    raise typer.Exit(status)


def engines(
    config: Config = Path("config/local.yaml"),
    uds: Annotated[Path | None, typer.Option(help="Listen on this Unix socket.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on, with --port.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Listen on this TCP port.")] = None,
    drain_s: Annotated[int, typer.Option(min=0, help="Seconds that answers may go on after SIGTERM.")] = 5,
) -> None:
    """Run the engine host alone: every engine model and fusion of the config behind one OpenAI-compatible
    socket.

    `chorus serve` starts one by itself. Run it by hand to give it a container or a GPU of its own. It has
    no keys and no limits: keep it on a Unix socket, on loopback, or on a network where only gateways are.

    Examples:
        chorus engines config/local.yaml --uds /run/chorus/engines.sock

        chorus engines config/local.yaml --port 8100
    """
    from engines import preload
    from engines.server import run
    from protocol.errors import SettingsError
    from protocol.log_pipe import start_logging
    from protocol.settings import load_settings

    if (uds is None) == (port is None):
        raise SettingsError("Give one of --uds and --port.")
    settings = load_settings(config)
    preload.ensure()
    start_logging(settings, "engines")
    raise typer.Exit(run(settings, uds=uds, host=host, port=port, drain_s=drain_s))
