"""Settings to strategies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.composition import make_catalogue
from gateway.strategies import make_strategies
from protocol.chat import ChatRequest, Options
from protocol.errors import BadRequest, ModelNotFound, SettingsError
from protocol.settings import parse_settings

MODELS = """
models:
  a: {openai: {base_url: "http://127.0.0.1:9/v1", model: x}}
  b: {openai: {base_url: "http://127.0.0.1:9/v1", model: x}}
  e: {embedder: {weights: all-minilm-l6-v2-int8}}
strategies:
"""
ROOT = Path(__file__).parents[2]


def test_aggregate() -> None:
    """A vote needs no artefact."""
    settings = parse_settings(MODELS + "  vote: {aggregate: {members: [a, b]}}")
    assert list(make_strategies(settings)) == ["vote"]


def test_talks() -> None:
    """Models that decide by what they say need no artefact either; a wrong option stops the start."""
    config = (
        MODELS
        + """
  r1: {talk: {method: router-r1, router: b, members: {a: knows much}, options: {turns: 2}}}
  self: {talk: {method: disrouter, members: {a: "", b: ""}}}
"""
    )
    strategies = make_strategies(parse_settings(config))
    assert {name: type(found.strategy).__name__ for name, found in strategies.items()} == {
        "r1": "RouterR1Talk",
        "self": "DisRouterTalk",
    }
    for wrong, told in (
        ("{method: router-r1, members: {a: x}}", "router"),
        ("{method: router-r1, router: b, members: {a: x}, options: {turns: many}}", "turns"),
        ("{method: disrouter, members: {a: x}}", "two are needed"),
        ("{method: knn-router, members: {a: x}}", "does not talk"),
    ):
        with pytest.raises(SettingsError, match=told):
            make_strategies(parse_settings(MODELS + f"  t: {{talk: {wrong}}}"))
    with pytest.raises(SettingsError, match=r"talk\.members"):
        parse_settings(MODELS + "  t: {talk: {method: disrouter, members: {a: x, zzz: x}}}")


@pytest.mark.parametrize(
    "section",
    [
        "cascade: {stages: [a, b], artefact: nowhere}",
        "route: {artefact: nowhere, embedder: e, default: a}",
    ],
)
def test_missing_artefact_stops_the_start(section: str) -> None:
    """An artefact that cannot be loaded stops the start with its path in the config and the remedy."""
    settings = parse_settings(MODELS + f"  auto: {{{section}}}")
    with pytest.raises(SettingsError, match=r"^strategies\.auto: .*chorus train"):
        make_strategies(settings)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("aggregate: {method: vot, members: [a]}", "strategies.auto: No aggregator method 'vot'."),
        ("aggregate: {members: [a], options: {x: 1}}", "strategies.auto.aggregate.options.x: unknown"),
    ],
)
def test_a_wrong_method_or_option_names_its_path_once(section: str, told: str) -> None:
    """Whoever finds the fault, the path in the config stands before it, and only once."""
    with pytest.raises(SettingsError) as caught:
        make_strategies(parse_settings(MODELS + f"  auto: {{{section}}}"))
    assert caught.value.message.startswith(told)


def test_what_is_not_named_is_not_loaded() -> None:
    """Without a router in the config, none is imported."""
    code = "import sys, gateway.strategies; sys.exit('numpy' in sys.modules or 'routers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_names() -> None:
    """Models, strategies and fusions share one list of names, each resolved to what answers it."""
    config = """
models:
  a: {engine: {weights: x}}
  e: {embedder: {weights: x}}
strategies:
  duet: {fuse: {members: {a: 1}}}
  vote: {aggregate: {members: [a]}}
"""
    sockets = {"engines": Path("/run/engines.sock"), "embedder": Path("/run/embedder.sock")}
    catalogue = make_catalogue(parse_settings(config), sockets)
    assert catalogue.names == ("a", "e", "vote", "duet")
    labels = {
        name: catalogue.resolve(name, "chat", "/chat/completions").label for name in ("a", "vote", "duet")
    }
    assert labels == {"a": "direct", "vote": "vote", "duet": "duet"}
    with pytest.raises(BadRequest, match="embedding model"):
        catalogue.resolve("e", "chat", "/chat/completions")
    with pytest.raises(BadRequest, match="strategy"):
        catalogue.resolve("vote", "embeddings", "/embeddings")
    asked = ChatRequest({"model": "duet"}, Options(weights={"a": 2.0}))
    assert catalogue.sent("duet", asked) == {"model": "duet", "chorus": {"weights": {"a": 2.0}}}
    with pytest.raises(BadRequest, match="no fusion"):
        catalogue.sent("a", asked)
    with pytest.raises(ModelNotFound, match="a, e, vote, duet"):
        catalogue.resolve("nope", "chat", "/chat/completions")
