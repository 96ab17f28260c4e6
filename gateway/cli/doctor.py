"""`chorus doctor`: what on this machine would keep a config from being served, or from being served well.

Each check looks at one thing and yields findings; a finding that is not "ok" says what to do. Nothing is
changed, and no model is asked.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.doctor_stores import ledger_file, remote_stores
from gateway.cli.finding import Finding
from gateway.cli.parameters import Config
from gateway.open_files import ENOUGH, reach
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from backends.outbound import Way
    from protocol.settings import OpenAIModel, Settings

__all__ = ["Finding", "doctor", "findings"]

ENOUGH_DAYS = 14
"""For which a certificate should still be good."""
SKEW_S = 30.0
"""A clock this wrong makes log times useless and, soon, certificates and leases invalid."""
PATIENCE_S = 3.0
UNLOADABLE = ("torchvision", "torchaudio", "torchcodec")


Check = Callable[["Settings", Path], Iterator[Finding]]


def doctor(
    config: Config = Path("config/local.yaml"),
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no endpoint, no database and no Redis.")
    ] = False,
) -> None:
    """Look for what would keep a config from being served on this machine, and say what to do.

    Looks at the config, weights, artefacts, ports, certificates, proxies, open files, memory, clock, ledger, the
    engine host's libraries and preloads, and whether Redis, the ledger's database and the configured endpoints can be
    reached and used (endpoints are asked for their list of models, which costs nothing). Exits with 1 when something
    is wrong.

    Examples:
        chorus doctor config/local.yaml

        chorus doctor /etc/chorus/chorus.yaml --offline
    """
    from rich.console import Console

    from protocol.redaction import Redaction

    console, redaction = Console(soft_wrap=True, highlight=False), Redaction()
    marks = {"ok": "[green]✓[/green]", "note": "[yellow]![/yellow]", "wrong": "[red]✗[/red]"}
    wrong = 0
    for finding in findings(config, offline=offline):
        console.print(marks[finding.level], end=" ")
        console.print(redaction.text(finding.what), markup=False)
        if finding.remedy:
            console.print(f"  → {finding.remedy}", markup=False)
        wrong += finding.level == "wrong"
    if wrong:
        raise typer.Exit(1)


def findings(config: Path, *, offline: bool = False) -> Iterator[Finding]:
    """Everything found about `config` on this machine; with a config that cannot be read nothing else."""
    from protocol.settings import load_settings

    try:
        settings = load_settings(config)
    except SettingsError as error:
        yield Finding("wrong", error.message, "`chorus schema --markdown` lists every setting.")
        return
    yield Finding("ok", f"config: {len(settings.models)} models, {len(settings.strategies)} strategies")
    for check in CHECKS:
        yield from check(settings, config)
    if not offline:
        yield from remote_stores(settings)
        yield from _endpoints(settings)


def _weights(settings: Settings, config: Path) -> Iterator[Finding]:
    """Known weights are here and complete; a path is a folder."""
    from engines.weights import CATALOGUE, status
    from gateway.local_weights import wanted

    here = {entry.weights.id: entry.installed for entry in status()}
    pull = f"`chorus models pull --config {config}` fetches them."
    for name in wanted(settings):
        yield (
            Finding("ok", f"weights: {name} is here")
            if here[name]
            else Finding("wrong", f"weights: {name} is missing or incomplete", pull)
        )
    for model in settings.models.values():
        section = model.engine or model.embedder
        if section and section.weights not in CATALOGUE and not Path(section.weights).expanduser().is_dir():
            yield Finding("wrong", f"weights: there is no folder {section.weights}", "Put them there.")


def _artefacts(settings: Settings, config: Path) -> Iterator[Finding]:
    """Every strategy can be made: its artefact is there, whole, and made for these models and embedder."""
    from gateway.strategies import make_strategies

    for name, section in settings.strategies.items():
        try:
            make_strategies(settings.model_copy(update={"strategies": {name: section}}))
        except SettingsError as error:
            yield Finding("wrong", error.message, "")
        else:
            yield Finding("ok", f"strategy: {name} can be made")


def _ports(settings: Settings, config: Path) -> Iterator[Finding]:
    """The ports are free, or Chorus has them already."""
    from gateway.ports import bind

    server = settings.server
    running = _running(server.admin_host, server.admin_port)
    if running is not None:
        level: Literal["ok", "note"] = "ok" if running == "ready" else "note"
        look = f"http://{_near(server.admin_host)}:{server.admin_port}/readyz says which part."
        yield Finding(level, f"Chorus runs here already and is {running}", "" if level == "ok" else look)
        return
    for host, port, setting in (
        (server.host, server.port, "server.port"),
        (server.admin_host, server.admin_port, "server.admin_port"),
    ):
        try:
            bind(host, port, setting).close()
        except SettingsError as error:
            yield Finding("wrong", error.message)
        else:
            yield Finding("ok", f"port: {port} on {host} is free")


def _door(settings: Settings, config: Path) -> Iterator[Finding]:
    """Who reaches the port may spend money."""
    from gateway.open_door import OPEN, anybody_may_ask

    if anybody_may_ask(settings, settings.server.host):
        yield Finding(
            "note",
            f"whoever reaches {settings.server.host} port {settings.server.port} may ask models: there is no key",
            OPEN,
        )


def _certificates(settings: Settings, config: Path) -> Iterator[Finding]:
    """Certificates that we show can be used, and are good for a while."""
    pairs = []
    if (tls := settings.server.tls) is not None:
        pairs.append(("server.tls", tls.certificate, tls.key))
    pairs += [
        (f"models.{name}.openai.client_certificate", shown.certificate, shown.key)
        for name, model in settings.models.items()
        for endpoint in model.openai or ()
        if (shown := endpoint.client_certificate) is not None
    ]
    for where, certificate, key in dict.fromkeys(pairs):
        yield _certificate(where, certificate, key)


def _certificate(where: str, certificate: Path, key: Path) -> Finding:
    from datetime import UTC, datetime

    from backends.certificates import good_until

    told = f"certificate: {certificate} ({where})"
    try:
        until = good_until(certificate, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        return Finding(
            "wrong", f"{told} with {key} cannot be used: {error}", "Both are PEM files, unencrypted."
        )
    renew = "Renew it; a running gateway takes up the new files by itself."
    if until is None:
        return Finding("wrong", f"{told} has expired, or is not good yet", renew)
    days = (until - datetime.now(UTC)).days
    if days < ENOUGH_DAYS:
        return Finding("note", f"{told} expires in {days} days", renew)
    return Finding("ok", f"{told} is good for {days} days")


def _ways(settings: Settings, config: Path) -> Iterator[Finding]:
    """The files that trust in backends rests on can be used, and it is said who is reached through a proxy."""
    from urllib.parse import urlsplit

    from backends.outbound import find_way

    for name, model in settings.models.items():
        for endpoint in model.openai or ():
            try:
                way = find_way(name, endpoint, settings.outbound)
            except SettingsError as error:
                yield Finding("wrong", error.message, "Check ca_file and client_certificate.")
                continue
            if way.proxy is not None:
                # Not the whole URL: it may hold a password.
                through = urlsplit(way.proxy)
                yield Finding(
                    "ok", f"proxy: models.{name} is reached through {through.hostname}:{through.port or 80}"
                )


def _limits(settings: Settings, config: Path) -> Iterator[Finding]:
    """Open files and cores are enough."""
    files = reach()
    if files < ENOUGH:
        yield Finding(
            "note",
            f"open files: {files} at most, two a request in flight; the hard limit allows no more",
            "`ulimit -Hn 65536` as root before the start, or LimitNOFILE= in the systemd unit.",
        )
    else:
        yield Finding("ok", f"open files: {files}, once started")
    cores = len(os.sched_getaffinity(0))
    if settings.server.workers > cores:
        yield Finding(
            "note",
            f"cores: {settings.server.workers} workers share {cores}",
            f"server.workers above {cores} gain nothing here.",
        )


def _memory(settings: Settings, config: Path) -> Iterator[Finding]:
    """Weights and KV caches fit into what is free."""
    from gateway.local_weights import weights_folder

    engines = [model.engine for model in settings.models.values() if model.engine]
    if not engines:
        return
    # Kept in float32 on disk, at most that in memory.
    weights = sum(_folder_bytes(weights_folder(engine.weights)) for engine in engines)
    need = (weights + sum(engine.kv_cache_gib for engine in engines) * 2**30) / 2**30
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    available = Path("/proc/meminfo")
    if available.exists():
        line = next(line for line in available.read_text().splitlines() if line.startswith("MemAvailable"))
        free = int(line.split()[1]) / 2**20
    told = f"memory: engines want up to {need:.1f} GiB, {free:.1f} GiB are available"
    remedy = "Lower kv_cache_gib, or take a smaller dtype or fewer engine models."
    yield Finding("ok", told) if need < free else Finding("wrong", told, remedy)


def _engine_host(settings: Settings, config: Path) -> Iterator[Finding]:
    """The engine host's libraries are there, and what makes them fast is set."""
    if not any(model.engine for model in settings.models.values()):
        return
    missing = [name for name in ("torch", "vllm", "transformers") if find_spec(name) is None]
    if missing:
        yield Finding(
            "wrong",
            f"engine host: {', '.join(missing)} not installed, and the config has engine models",
            "docs/install.md; or run the engine host elsewhere, as config/gateway.yaml does.",
        )
        return
    if broken := [name for name in UNLOADABLE if find_spec(name)]:
        yield Finding(
            "wrong",
            f"engine host: {', '.join(broken)} do not load beside the CPU build of torch",
            f"`pip uninstall {' '.join(broken)}`; nothing here needs them.",
        )
    from engines import preload

    preloaded = os.environ.get("LD_PRELOAD", "")
    for library in preload.libraries():
        if library.path or library.preloaded(preloaded):
            yield Finding("ok", f"engine host: {library.name} is preloaded when it starts")
        else:
            told = f"engine host: {library.name} is not here; vLLM on CPUs is made to run with it"
            yield Finding("note", told, library.remedy)
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads.isdigit() and int(threads) != cores:
        remedy = f"Unset it, or set it to {cores}, unless others are to have the rest."
        yield Finding("note", f"engine host: OMP_NUM_THREADS is {threads} on {cores} cores", remedy)
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        yield Finding(
            "note",
            "engine host: OMP_WAIT_POLICY=ACTIVE; spinning threads are ruinous on cores that others use as well",
            "Keep it only where the engine host has its cores to itself.",
        )
    yield Finding("ok", "engine host: its libraries are installed")


def _telemetry(settings: Settings, config: Path) -> Iterator[Finding]:
    """What OpenTelemetry needs is installed, where it is switched on."""
    endpoint = settings.telemetry.endpoint
    if endpoint is None:
        return
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        yield Finding(
            "wrong",
            "telemetry: OpenTelemetry is not installed",
            "pip install 'chorus-gateway[otel]' brings it.",
        )
    else:
        yield Finding("ok", f"telemetry: traces and metrics go to {endpoint}")


def _clock(settings: Settings, config: Path) -> Iterator[Finding]:
    """The kernel says whether something keeps its clock right."""
    unsynchronised = 5  # TIME_ERROR of adjtimex(2)
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "adjtimex"):
        return
    # Room for struct timex, whose first field, zero, asks to change nothing.
    if libc.adjtimex(ctypes.create_string_buffer(512)) == unsynchronised:
        yield Finding(
            "note",
            "clock: nothing keeps it in step, as far as the kernel knows",
            "Run chrony or systemd-timesyncd, here or on the host of this machine.",
        )
    else:
        yield Finding("ok", "clock: kept in step")


def _endpoints(settings: Settings) -> Iterator[Finding]:
    """Every configured endpoint can be reached and takes its key."""
    from backends.outbound import find_way

    seen = set()
    for name, model in settings.models.items():
        for endpoint in model.openai or ():
            key = endpoint.api_key.get_secret_value() if endpoint.api_key else None
            if endpoint.base_url.startswith("http") and (endpoint.base_url, key) not in seen:
                seen.add((endpoint.base_url, key))
                try:
                    way = find_way(name, endpoint, settings.outbound)
                except SettingsError:
                    continue  # said before
                yield from _endpoint(name, endpoint, key, way)


def _endpoint(name: str, endpoint: OpenAIModel, key: str | None, way: Way) -> Iterator[Finding]:
    import datetime
    import ssl

    import httpx

    url = httpx.URL(endpoint.base_url).copy_with(userinfo=b"")
    where = f"endpoint: {url} (models.{name})"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        # The same way as the gateway's own client.
        context = way.context or ssl.create_default_context()
        with httpx.Client(proxy=way.proxy, verify=context, trust_env=False, timeout=PATIENCE_S) as client:
            answer = client.get(f"{endpoint.base_url}/models", headers=headers)
    except httpx.HTTPError as error:
        yield Finding(
            "wrong", f"{where} cannot be reached: {error}", "Check base_url, DNS, proxy and firewall."
        )
        return
    if answer.status_code in (401, 403):
        yield Finding("wrong", f"{where} refuses the key it is sent ({answer.status_code})", "Check api_key.")
    elif answer.status_code >= 500:
        yield Finding("note", f"{where} answers {answer.status_code}", "It is reached, and ails.")
    else:
        yield Finding("ok", f"{where} answers")
    if date := answer.headers.get("date"):
        skew_s = (datetime.datetime.now(datetime.UTC) - parsedate_to_datetime(date)).total_seconds()
        if abs(skew_s) > SKEW_S:
            yield Finding(
                "wrong",
                f"clock: {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} {url}",
                "Run chrony or systemd-timesyncd.",
            )


def _running(host: str, port: int) -> str | None:
    """The state of the Chorus whose admin port this is; None when there is none."""
    import httpx

    try:
        told = httpx.get(f"http://{_near(host)}:{port}/readyz", timeout=PATIENCE_S, trust_env=False).json()
        return str(told["status"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _near(host: str) -> str:
    """How a server that listens on `host` is reached from here."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here
    return f"[{near}]" if ":" in near else near


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _hosted(settings: Settings, config: Path) -> Iterator[Finding]:
    """LiteLLM is installed where a model needs it."""
    from backends.hosted.quiet import INSTALL

    if any(model.hosted for model in settings.models.values()):
        missing = [name for name in ("litellm", "boto3") if find_spec(name) is None]
        yield (
            Finding("wrong", f"hosted providers: {' and '.join(missing)} not installed", INSTALL)
            if missing
            else Finding("ok", "hosted providers: litellm is installed")
        )


def _prices(settings: Settings, config: Path) -> Iterator[Finding]:
    """Every model has a price, so that budgets and decisions mean something."""
    from gateway.prices import UNPRICED, unpriced

    for name in unpriced(settings):
        yield Finding("note", f"price: models.{name} has none, and none is known", UNPRICED.format(name=name))


CHECKS: tuple[Check, ...] = (
    _weights,
    _artefacts,
    _ports,
    _door,
    _certificates,
    _ways,
    _limits,
    _memory,
    _engine_host,
    _hosted,
    _prices,
    _telemetry,
    ledger_file,
    _clock,
)
