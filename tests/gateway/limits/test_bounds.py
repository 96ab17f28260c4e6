"""The most a request can cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.bounds import Bound, Bounds
from protocol.errors import SettingsError
from protocol.settings import Settings

PRICE = {"input_usd_per_token": 1e-6, "output_usd_per_token": 1e-5}
HOSTED = {"openai": {"base_url": "http://x/v1", "model": "x"}, "price": PRICE}
ENGINE = {"engine": {"weights": "w", "max_model_len": 100}, "price": PRICE}


def bounds(**strategies: Any) -> Bounds:
    models = {
        "one": {**HOSTED, "max_output_tokens": 50},
        "two": {**HOSTED, "context_length": 200},
        "free": {"openai": HOSTED["openai"]},
        "engine": ENGINE,
        "other": ENGINE,
        "backed": {**HOSTED, "max_output_tokens": 50, "fallbacks": ["one"]},
        "embedder": {"embedder": {"weights": "w"}, "price": PRICE},
    }
    return Bounds(
        Settings.model_validate({"models": models, "strategies": strategies}), {"auto": ("one", "two")}
    )


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def cost(read: int, written: int) -> int:
    return read * 1_000 + written * 10_000


def size(**fields: Any) -> int:
    return len(orjson.dumps(body(**fields)))


def bound(of: Bounds, name: str, asked: Mapping[str, Any], *, writes: bool = True) -> Bound:
    return of.of(name, asked, len(orjson.dumps(asked)), writes=writes)


def test_a_model() -> None:
    """The prompt by its bytes, the answer by the caller's bound, else by the model's cap."""
    told = bounds()
    assert bound(told, "one", body()).nanodollars == cost(size(), 50)
    assert bound(told, "one", body(max_tokens=7)).nanodollars == cost(size(max_tokens=7), 7)
    assert bound(told, "one", body(max_completion_tokens=7, n=3)).nanodollars == cost(
        size(max_completion_tokens=7, n=3), 21
    )
    assert bound(told, "two", body()).nanodollars == pytest.approx(cost(size(), 200), abs=1)
    assert bound(told, "two", body(pad="x" * 900)).nanodollars == cost(200, 200)
    assert bound(told, "free", body()).nanodollars == 0
    assert bound(told, "backed", body()).nanodollars == 2 * cost(size(), 50)
    assert bound(told, "engine", body()).nanodollars == cost(size(), 100)


def test_caps_are_sent_to_hosted_models() -> None:
    """Engines end with their context; every other model is told how long it may write."""
    assert bounds().caps == {"one": 50, "two": 200, "free": 4096, "backed": 50}


def test_strategies_add_up() -> None:
    """A cascade costs all stages, a vote all samples, a route its dearest choice and the embedding."""
    told = bounds(
        cascade={"cascade": {"stages": ["one", "two"], "artefact": "x"}},
        vote={"aggregate": {"members": ["one", "two"], "samples": 3}},
        auto={"route": {"artefact": "x", "embedder": "embedder", "default": "one"}},
        reading={"route": {"artefact": "x", "default": "one"}},
        hand={"talk": {"method": "disrouter", "members": {"one": "", "two": ""}}},
        r1={"talk": {"router": "one", "members": {"one": "x"}, "options": {"turns": 2}}},
        duet={"fuse": {"members": {"engine": 1, "other": 1}}},
    )
    one, two = cost(size(), 50), cost(size(), 200)
    assert bound(told, "cascade", body()).nanodollars == one + two
    assert bound(told, "vote", body()).nanodollars == 3 * (one + two)
    assert bound(told, "auto", body()).nanodollars == pytest.approx(two + cost(size(), 0), abs=1)
    assert bound(told, "reading", body()).nanodollars == one, "no pool is known here, and nothing is embedded"
    handed = cost(size() + 1024, 50) + cost(200, 200)
    assert bound(told, "hand", body()).nanodollars == pytest.approx(handed, abs=1)
    # Three generations of 1024 tokens and two replies of 512, and what each may read: more than fits a few kilobytes.
    least = 3 * cost(size(), 1024) + 2 * cost(0, 512)
    assert least < bound(told, "r1", body()).nanodollars < least + cost(30_000, 0)
    assert bound(told, "duet", body()).nanodollars == 2 * cost(size(), 100)


def test_drafts_that_are_not_kept_cost_too() -> None:
    """Written in spans, an answer costs each member up to eight tokens for one, beyond its context."""
    told = bounds(spans={"fuse": {"method": "cool-fusion", "members": {"engine": 1, "other": 1}}})
    asked = body(max_tokens=50)
    assert bound(told, "spans", asked).nanodollars == 2 * cost(size(max_tokens=50), 8 * 50)
    assert bound(told, "spans", body()).nanodollars == 2 * cost(size(), 8 * 100)


def test_a_search_costs_what_it_may_try() -> None:
    """A search reserves an answer for every iteration, for each of its members."""
    fuse = {"method": "le-mcts", "members": {"engine": 1, "other": 1}, "options": {"iterations": 4}}
    told = bounds(search={"fuse": fuse})
    assert bound(told, "search", body(max_tokens=50)).nanodollars == 2 * cost(size(max_tokens=50), 12 * 50)
    with pytest.raises(SettingsError, match=r"strategies\.search\.fuse\.options"):
        bounds(search={"fuse": {**fuse, "options": {"colour": "red"}}})


def test_what_keeps_to_its_bound_by_itself() -> None:
    """A model and its fallbacks; a strategy's calls are counted as they are made, and so is what was not judged by its
    words."""
    told = bounds(
        auto={"route": {"method": "knn-router", "artefact": "a", "embedder": "embedder", "default": "one"}}
    )
    assert bound(told, "one", body()).sure
    assert bound(told, "backed", body()).sure
    assert not bound(told, "auto", body()).sure
    assert not bound(told, "one", {}).sure


def test_references_cost_what_they_may_name() -> None:
    """An image behind a URL has more tokens than its address has bytes."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]
    assert bound(bounds(), "one", body(messages=image)).nanodollars > cost(40_000, 50)


def test_embeddings_write_nothing() -> None:
    """Only what is read costs."""
    asked = {"model": "one", "input": ["a", "b"]}
    assert bound(bounds(), "one", asked, writes=False).nanodollars == cost(len(orjson.dumps(asked)), 0)


@given(st.text(max_size=200), st.integers(1, 64), st.integers(1, 4))
def test_no_answer_costs_more(text: str, most: int, n: int) -> None:
    """Even if every byte of the text were a token of its own, and every answer as long as it may be."""
    asked = body(messages=[{"role": "user", "content": text}], max_tokens=most, n=n)
    used = cost(len(text.encode()) + 8, most * n)
    assert used <= bound(bounds(), "one", asked).nanodollars


def test_token_estimate() -> None:
    """A limit on tokens counts four bytes a token, and the answer's bound."""
    assert bound(bounds(), "one", body(max_tokens=100)).tokens == pytest.approx(
        100 + size(max_tokens=100) // 4
    )
