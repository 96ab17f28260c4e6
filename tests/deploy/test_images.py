"""The Dockerfile and docker-compose.yml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.settings import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_dockerfile_is_linted() -> None:
    """Hadolint finds nothing, down to its least remarks."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--failure-threshold", "style", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_copied_is_in_the_build_context() -> None:
    """What the Dockerfile copies is let in by .dockerignore and exists; of secrets and state nothing is."""
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    for path in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in path.split():
            assert source == "." or source.split("/")[0] in let_in, source
    assert all((ROOT / name).exists() for name in let_in)
    assert not let_in & {".git", ".env", "tests"}


def test_every_package_is_copied() -> None:
    """A new top-level package is part of the image."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    let_in = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert packages - {"tests"} <= let_in


def test_images_run_as_nobody_in_particular() -> None:
    """Both images end with a numeric user that is not root, a probe, and `chorus` as their program."""
    for name in ("engines", "gateway"):
        stage = re.split(r"^FROM ", DOCKERFILE.partition(f" AS {name}\n")[2], flags=re.MULTILINE)[0]
        assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", stage, re.MULTILINE)
        assert "HEALTHCHECK" in stage
        assert 'ENTRYPOINT ["chorus"]' in stage


def test_the_gateway_image_has_no_torch() -> None:
    """Its libraries are those of the gateway's lock, which has none of the engine host's."""
    stage = DOCKERFILE.partition("AS build-gateway")[2].partition("AS build-engines")[0]
    assert "-r locks/gateway.txt" in stage
    assert "-r locks/serve.txt" not in stage


@pytest.mark.requires("docker-compose")
def test_compose_reads_its_file() -> None:
    """docker-compose accepts the file, with and without what is optional."""
    for profile in ((), ("--profile", "redis")):
        command = ["docker-compose", "--project-directory", str(ROOT), "-f", "docker-compose.yml", *profile]
        done = subprocess.run(
            [*command, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_every_image_may_be_pinned_by_digest() -> None:
    """Each image of compose, and the base of those built here, is a variable with a tag as its default; the base is the
    Dockerfile's."""
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in COMPOSE["services"].items():
        assert re.fullmatch(r"\$\{[A-Z_]+_IMAGE:-[\w./-]+(:[\w.-]+)?\}", service["image"]), name
        if "build" in service:
            assert service["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{base}}}"


def test_services_are_hardened() -> None:
    """Every container has a read-only root, no capabilities and no way to gain privileges; ports are open on
    loopback only."""
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert ":latest" not in service["image"]


def test_keys_and_ledger_outlive_the_gateway() -> None:
    """They are in a volume, in a folder that the image has made for its user."""
    gateway = COMPOSE["services"]["gateway"]
    folder = gateway["environment"]["XDG_STATE_HOME"]
    assert gateway["volumes"] == [f"state:{folder}"]
    assert "state" in COMPOSE["volumes"]
    assert re.search(
        rf"^RUN install -d -o 10001 -g 10001 .*{folder}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )


def test_redis_keeps_keys() -> None:
    """Keys and total budgets live in it: what it is told survives it, and nothing is evicted."""
    redis = COMPOSE["services"]["redis"]
    told = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert (told["--appendonly"], told["--maxmemory-policy"]) == ("yes", "noeviction")
    (volume,) = redis["volumes"]
    assert volume == "shared:/data"
    assert "shared" in COMPOSE["volumes"]


def test_only_gateways_reach_engines() -> None:
    """The engine host has neither keys nor limits, so its network has no way out, and nobody but the gateway and
    what is for it is on it."""
    services = COMPOSE["services"]
    assert services["engines"]["networks"] == ["models"]
    assert COMPOSE["networks"]["models"]["internal"]
    assert {name for name, one in services.items() if "models" in one["networks"]} == {
        "engines",
        "gateway",
        "redis",
    }


def test_mounted_files_exist() -> None:
    """Every file of the checkout that a container mounts is there."""
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists(), volume


def test_the_pair_of_configs_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's config asks the engine host's for models and fusions that it serves, and serves all names of
    config/local.yaml with the same strategies and prices."""
    monkeypatch.setenv("CHORUS_ENGINES_URL", "http://engines:8090/v1")
    gateway, engines, local = (
        load_settings(ROOT / "config" / f"{name}.yaml") for name in ("gateway", "engines", "local")
    )
    served = {*engines.models, *engines.strategies}
    assert {model.openai[0].model for model in gateway.models.values() if model.openai} == served
    assert {*gateway.models, *gateway.strategies} == {*local.models, *local.strategies}
    assert all(local.strategies[name] == strategy for name, strategy in gateway.strategies.items())
    assert engines.strategies == {"duet": local.strategies["duet"]}
    assert {name: model.engine for name, model in engines.models.items()} == {
        name: model.engine for name, model in local.models.items() if model.engine
    }
    for name, model in gateway.models.items():
        assert name not in local.models or model.price == local.models[name].price
