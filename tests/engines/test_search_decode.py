"""Searches in the host's loop, with engines that are tables, against beam search written down by hand."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import torch

from engines.assemble import fusion_spec
from engines.engine import EngineSpec
from engines.generation import Event, Generation, Piece, Sampling
from engines.host import FusionSpec
from ensembles.tokens.abe import ABE
from ensembles.tokens.base import Drafts
from protocol.errors import SettingsError
from protocol.settings import Fusion
from tests.engines.table_engine import LETTERS, PAIRS, TableEngine, answers, host_of

PROMPTS = [[1 + i % 3, 1 + i // 3 % 3, 2] for i in range(9)]
NAMES = ".abc"


def _beam_search(engine: TableEngine, prompt: list[int], beams: int, bound: int) -> str:
    """Beam search with length normalisation over one table of letters."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    while alive and len(finished) < beams:
        options = []
        for total, ids in alive:
            logp = engine.logits([*prompt, *ids]).log_softmax(-1)
            options += [(total + float(logp[i]), [*ids, i]) for i in range(4)]
        options.sort(key=lambda option: -option[0] / len(option[1]))
        alive = []
        for total, ids in options:
            if ids[-1] == 0:
                finished.append((total / len(ids), ids))
            else:
                alive.append((total, ids))
            if len(alive) == beams:
                break
        if len(alive[0][1]) == bound:
            finished += [(total / len(ids), ids) for total, ids in alive]
            alive = []
    return "".join(NAMES[i] for i in max(finished)[1])


@pytest.mark.parametrize("beams", [1, 3, 5])
def test_one_member_is_beam_search(tmp_path: Path, beams: int) -> None:
    """ABE with one model writes what beam search writes, all requests side by side."""
    host, engines = host_of(tmp_path, {"x": (LETTERS, 1)}, [FusionSpec("abe", ("x",), (1.0,), ABE(beams))])
    texts = answers(host, "abe", PROMPTS, max_tokens=6)
    host.stop()
    assert texts == [_beam_search(engines["x"], prompt, beams, 6) for prompt in PROMPTS]
    assert len(set(texts)) > 3
    assert not engines["x"].live


@pytest.mark.parametrize("members", [("x", "y"), ("x", "y", "z")])
def test_the_text_is_within_every_members_reach(tmp_path: Path, members: tuple[str, ...]) -> None:
    """Members with different vocabularies finish with one text; the order of the config changes nothing."""
    weights = (0.5, 0.3, 0.2)[: len(members)]
    pool = {"x": (LETTERS, 1), "y": (PAIRS, 2), "z": (PAIRS, 3)}
    fusions = [
        FusionSpec("abe", members, weights, ABE(3)),
        FusionSpec("turned", members[::-1], weights[::-1], ABE(3), main=len(members) - 1),
    ]
    host, engines = host_of(tmp_path, pool, fusions)
    texts = answers(host, "abe", PROMPTS, max_tokens=8)
    assert answers(host, "turned", PROMPTS, max_tokens=8) == texts
    host.stop()
    assert len(set(texts)) > 3
    assert not any(engine.live for engine in engines.values())


def test_an_answer_ends_where_it_must(tmp_path: Path) -> None:
    """The bound of tokens, a stop string and the context's end."""
    host, engines = host_of(
        tmp_path, {"x": (LETTERS, 1), "y": (PAIRS, 2)}, [FusionSpec("abe", ("x", "y"), (0.5, 0.5), ABE(2))]
    )
    whole = answers(host, "abe", PROMPTS, max_tokens=8)
    assert all(len(text) <= 8 or text.endswith(".") for text in whole)
    stopped = answers(host, "abe", PROMPTS, max_tokens=8, stops=(b"b",))
    assert [text.rstrip(".") for text in stopped] == [text.rstrip(".").split("b")[0] for text in whole]
    assert all(len(text) < 64 for text in answers(host, "abe", PROMPTS[:2], max_tokens=None))
    host.stop()
    assert not any(engine.live for engine in engines.values())


def test_a_search_cannot_bend_what_it_does_not_draw(tmp_path: Path) -> None:
    """Log-probabilities, penalties and biases are refused by name, with the reason."""
    host, _ = host_of(tmp_path, {"x": (LETTERS, 1)}, [FusionSpec("abe", ("x",), (1.0,), ABE(2))])
    host.stop()
    fields = host.cannot("abe")
    assert {"logprobs", "logit_bias", "presence_penalty", "top_k"} <= fields.keys()
    assert all("search" in reason for reason in fields.values())
    assert host.cannot("x") == {}


def test_a_config_names_both_kinds() -> None:
    """`fuse: {method: …}` takes searches and fusions, with their options, and refuses others by name."""
    members = {"x": 0.7, "y": 0.3}
    abe = fusion_spec("agreed", Fusion(method="abe", members=members, options={"beams": 2}))
    assert abe.fusion == ABE(2)
    drafted = fusion_spec(
        "drafted", Fusion(method="spec-ensemble", members=members, options={"drafts": [2, 1]})
    )
    assert isinstance(drafted.fusion, Drafts)
    assert drafted.fusion.turns(2) == ((0, 2), (1, 1))
    with pytest.raises(SettingsError, match="nonesuch"):
        fusion_spec("bad", Fusion(method="nonesuch", members=members))


def test_what_is_certain_is_shown_at_once(tmp_path: Path) -> None:
    """Text that all hypotheses begin with streams before the end; nothing shown is taken back."""
    host, _ = host_of(
        tmp_path, {"x": (LETTERS, 1), "y": (PAIRS, 2)}, [FusionSpec("abe", ("x", "y"), (0.5, 0.5), ABE(2))]
    )
    whole = answers(host, "abe", PROMPTS, max_tokens=20)
    shown = []
    for n, prompt in enumerate(PROMPTS):
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        asked = Sampling(temperature=0.0, max_tokens=20)
        host.submit(Generation(f"s{n}", "abe", (tuple(prompt),) * 2, asked), events.put)
        pieces = []
        while isinstance(event := events.get(timeout=60), Piece):
            pieces.append(event.text)
        shown.append(pieces)
    host.stop()
    assert ["".join(pieces) for pieces in shown] == [text.rstrip(".") for text in whole]
    assert max(map(len, shown)) > 1


def test_tables_disagree() -> None:
    """The members' tables differ: else nothing above could fail."""
    rows = [TableEngine(EngineSpec("x", Path()), 5, seed).logits([1, 2, 3]) for seed in (2, 3)]
    assert not torch.equal(*rows)
