"""The command `chorus`: help, errors, and the commands that need no running gateway."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import typer
import yaml

from gateway.cli.application import application
from gateway.cli.parameters import options, words
from protocol.errors import SettingsError
from protocol.methods import methods

ROOT = Path(__file__).parents[3]
COMMANDS = [
    "serve",
    "engines",
    "models",
    "outcomes",
    "spans",
    "keys",
    "usage",
    "ledger",
    "collect",
    "train",
    "export",
    "calibrate",
    "evaluate",
    "threshold",
    "assign",
    "replay",
    "teach",
    "methods",
    "check",
    "schema",
    "top",
    "doctor",
    "chat",
]
CONFIG = "models: {a: {openai: {base_url: 'http://x/v1', model: m, api_key: os.environ/CLI_KEY}}}\n"


def test_all_commands_are_there() -> None:
    """The application has exactly the documented commands."""
    assert set(typer.main.get_command(application).commands) == set(COMMANDS)


def test_the_version_is_told(chorus) -> None:
    """Bug reports begin with it."""
    status, told, _ = chorus("--version")
    assert (status, told.split()[0].rstrip(",")) == (0, "chorus")


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *(f"models {name}" for name in ("list", "pull", "rm", "price", "prices")),
        *(f"keys {name}" for name in ("create", "list", "revoke", "rotate")),
        *(f"ledger {name}" for name in ("backup", "restore", "check")),
    ],
)
def test_help_is_worth_reading(chorus, command: str) -> None:
    """Every command's help says what it does, each option has words, and most show an example."""
    status, out, _ = chorus(*command.split(), "--help")
    assert status == 0
    assert len(out) > 300
    if command not in ("models", "models list", "models rm", "keys", "ledger", "outcomes", "spans"):
        assert "Example" in out


def test_help_is_light() -> None:
    """Asking for help loads neither the engines nor the learning libraries nor the gateway."""
    code = (
        "import sys\nfrom gateway.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'vllm', 'numpy', 'httpx', 'fastapi', 'pyarrow', 'engines')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_check_prints_the_effective_config_redacted(
    chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole config with defaults comes out as YAML, no secret in it."""
    monkeypatch.setenv("CLI_KEY", "sk-canary")
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    status, out, err = chorus("check", path)
    assert (status, err) == (0, "")
    told = yaml.safe_load(out)
    assert told["server"]["port"] == 8080
    assert told["models"]["a"]["openai"][0]["api_key"] == "**********"
    assert "canary" not in out


def test_check_exits_2_with_every_fault(chorus, tmp_path: Path) -> None:
    """Faults come on stderr with their paths, without a traceback."""
    path = tmp_path / "c.yaml"
    path.write_text("models: {a: {engine: {weigths: w, dtype: x}}}")
    status, out, err = chorus("check", path)
    assert (status, out) == (2, "")
    assert "models.a.engine.weigths: unknown key; did you mean 'weights'?" in err
    assert "models.a.engine.dtype" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        ("{aggregate: {method: agent-forst, members: [a]}}", "Did you mean 'agent-forest'?"),
        ("{fuse: {method: gacc, members: {e: 1}}}", "Did you mean 'gac'?"),
        ("{route: {method: nearest, artefact: x, default: a}}", "No router method 'nearest'"),
    ],
)
def test_check_knows_the_methods(chorus, tmp_path: Path, strategy: str, told: str) -> None:
    """A misspelt method is found before anything is served, with its path."""
    path = tmp_path / "c.yaml"
    models = "models: {a: {openai: {base_url: 'http://x/v1', model: m}}, e: {engine: {weights: w}}}"
    path.write_text(f"{models}\nstrategies: {{s: {strategy}}}")
    status, _, err = chorus("check", path)
    assert (status, "strategies.s." in err, told in err) == (2, True, True)


def test_a_missing_file_is_one_line(chorus, tmp_path: Path) -> None:
    """A config that is not there is one clear line and status 2."""
    status, _, err = chorus("serve", tmp_path / "nowhere.yaml")
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert "nowhere.yaml" in err


@pytest.mark.parametrize("arguments", [["no-such-command"], ["serve", "--port", "x"], ["check"]])
def test_misuse_exits_2(chorus, arguments: list[str]) -> None:
    """Unknown commands, bad values and missing arguments are status 2."""
    assert chorus(*arguments)[0] == 2


def test_a_missing_extra_names_the_install_command(
    chorus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a library that an extra brings, the command says which to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    table = tmp_path / "t.parquet"
    table.write_bytes(b"PAR1")
    status, _, err = chorus(
        "calibrate",
        "token-uncertainty",
        "--stages",
        "a,b",
        "--outcomes",
        table,
        "--out",
        tmp_path,
        "--share",
        0.5,
    )
    assert status == 1
    assert "chorus-gateway[learn]" in err


def test_methods_as_json(chorus) -> None:
    """The registry comes out as JSON, one object a method, in the registry's order."""
    status, out, _ = chorus("methods", "--json")
    assert status == 0
    told = orjson.loads(out)
    assert [one["id"] for one in told] == [method.id for method in methods()]
    assert {"id", "title", "year", "paper", "taxonomy", "contract", "serving", "needs", "evidence"} <= set(
        told[0]
    )


def test_methods_as_a_table(chorus) -> None:
    """People see every id."""
    _, out, _ = chorus("methods")
    assert all(method.id in out for method in methods())


def test_schema_is_json(chorus) -> None:
    """The schema is printed as committed."""
    status, out, _ = chorus("schema")
    assert status == 0
    assert out == (ROOT / "config" / "settings.schema.json").read_text()


def test_engines_needs_one_address(chorus, tmp_path: Path) -> None:
    """The engine host wants a socket or a port, not neither nor both."""
    for given in ([], ["--uds", tmp_path / "s", "--port", 8100]):
        status, _, err = chorus("engines", ROOT / "config" / "local.yaml", *given)
        assert status == 2
        assert "--uds" in err


def test_unknown_weights_are_named(chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulling or removing what is not in the catalogue lists what is."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    for command in ("pull", "rm"):
        status, _, err = chorus("models", command, "smollm-9000")
        assert status != 0
        assert "smollm2-135m-instruct" in err


def test_models_list(chorus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty home everything is still to download."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    status, out, _ = chorus("models", "list")
    assert status == 0
    assert "gemma3-270m" in out
    assert "yes" not in out


def test_options_are_typed() -> None:
    """NAME=VALUE pairs are read as YAML values; anything else is refused."""
    assert options(["k=10", "weighted=true", "name=a=b", "x=[1"]) == {
        "k": 10,
        "weighted": True,
        "name": "a=b",
        "x": "[1",
    }
    for bad in ("k", "=1"):
        with pytest.raises(SettingsError, match="NAME=VALUE"):
            options([bad])
    assert words("a, b,,c ") == ["a", "b", "c"]
    assert words(None) == []


def test_models_prices(chorus, tmp_path: Path) -> None:
    """Each model's price per million tokens and where it is from; one without a price says so."""
    path = tmp_path / "c.yaml"
    path.write_text(
        "models:\n"
        "  a: {hosted: {model: anthropic/claude-sonnet-4-5, api_key: k}}\n"
        "  b: {openai: {base_url: 'http://x/v1', model: m}}\n"
        "  c: {openai: {base_url: 'http://x/v1', model: m}, price: gemini/gemini-2.5-pro}\n"
    )
    status, out, err = chorus("models", "prices", path)
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["a"][1:5] == ["3", "15", "0.3", "3.75"]
    assert rows["a"][-1] == "anthropic/claude-sonnet-4-5"
    assert "nowhere: counts as 0" in next(line for line in out.splitlines() if line.startswith("b "))
    assert "> 200000: 2.5 / 15" in next(line for line in out.splitlines() if line.startswith("c "))


def test_models_prices_known(chorus) -> None:
    """The table can be searched without a config; with neither, the command says what it wants."""
    status, out, _ = chorus("models", "prices", "--known", "anthropic/claude-sonnet-4-5")
    assert status == 0
    assert "anthropic/claude-sonnet-4-5" in out
    status, _, err = chorus("models", "prices")
    assert status == 2
    assert "--known" in err
