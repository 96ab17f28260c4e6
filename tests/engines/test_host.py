"""The step loop with engines that cost nothing: scripted logits over a tiny vocabulary instead of vLLM."""

from __future__ import annotations

import queue
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.engine import Engine, EngineSpec, Sampled
from engines.generation import End, Event, Failure, Generation, Piece, Sampling
from engines.host import FusionSpec, Host
from ensembles.tokens.gac import GaC
from tests.engines.test_byte_vocab import _tokenizer

VOCABS = {
    "letters": {"<eos>": 0, "a": 1, "b": 2, "c": 3},
    "pairs": {"<eos>": 0, "c": 1, "ab": 2, "a": 3, "b": 4},
}


class ScriptedEngine:
    """Stands where an `Engine` stands. Its next token after n generated ones is the n-th character of its
    script, an end behind the last; after the script's "!" it raises. Requests whose id is in `slow` read
    their prompt for two steps."""

    def __init__(self, spec: EngineSpec, script: str) -> None:
        self.spec, self.script = spec, script
        self.vocab = VOCABS[spec.name]
        self.live: dict[str, tuple[list[int], int, bool]] = {}
        self.computed: dict[str, int] = {}
        self.closed = False

    def add(
        self, request_id: str, prompt: Sequence[int], sampling: Sampling, end_ids: Collection[int]
    ) -> None:
        self.live[request_id] = ([], sampling.max_tokens or 99, False)

    def add_forced(self, request_id: str, prompt: Sequence[int], watch: Collection[int] = ()) -> None:
        self.live[request_id] = ([], 99, True)

    def cached(self, request_id: str) -> int:
        return 0

    def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            self.live.pop(name, None)
            self.computed.pop(name, None)

    def feed(self, request_id: str, ids: Sequence[int]) -> None:
        self.live[request_id][0].extend(ids)

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def forward(self) -> dict[str, torch.Tensor]:
        rows = {}
        for name, (ids, _, _) in self.live.items():
            if self.computed.get(name) != len(ids):
                self.computed[name] = len(ids)
                rows[name] = self._row(ids)
        return rows

    def _row(self, ids: Sequence[int]) -> torch.Tensor:
        written = sum(len(text) for i in ids for text, j in self.vocab.items() if i == j)
        wanted = self.script[written : written + 1]
        if wanted == "!":
            raise RuntimeError("the device is gone")
        row = torch.full((len(self.vocab),), -9.0)
        row[self.vocab.get(wanted, 0)] = 9.0
        return row

    def finish(self, forced: Mapping[str, Sequence[int]]) -> dict[str, Sampled]:
        out = {}
        for name, (ids, room, is_forced) in list(self.live.items()):
            if name in forced:
                ids.extend(forced[name])
            elif not is_forced:
                chosen = int(self._row(ids).argmax())
                ids.append(chosen)
                reason = "stop" if chosen == 0 else "length" if len(ids) >= room else None
                out[name] = Sampled([chosen], reason)
        return out

    def counts(self) -> tuple[int, int]:
        return len(self.live), 0

    def kv_usage(self) -> float:
        return 0.0

    def close(self) -> None:
        self.closed = True


def _host(
    tmp_path: Path, scripts: Mapping[str, str], crashes: list[BaseException] | None = None
) -> tuple[Host, dict[str, Any]]:
    specs = []
    for name, vocab in VOCABS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(_tokenizer(vocab, "bytes", ("<eos>",)))
        specs.append(EngineSpec(name, tmp_path / name, max_model_len=64))
    engines: dict[str, Any] = {}

    def load(spec: EngineSpec) -> Engine:
        engines[spec.name] = ScriptedEngine(spec, scripts[spec.name])
        return engines[spec.name]  # type: ignore[no-any-return]

    fusion = FusionSpec("duet", ("letters", "pairs"), (0.6, 0.4), GaC())
    host = Host(specs, [fusion], (crashes if crashes is not None else []).append, load=load)
    host.start()
    return host, engines


def _ask(host: Host, model: str, id: str = "r", **sampling: Any) -> queue.SimpleQueue[Event]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    asked = Sampling(**{"temperature": 0.0, **sampling})
    host.submit(Generation(id, model, ((1,), (1,))[: len(host.members_of(model))], asked), events.put)
    return events


def _answer(events: queue.SimpleQueue[Event]) -> tuple[str, Event]:
    text = ""
    while isinstance(event := events.get(timeout=20), Piece):
        text += event.text
    return text, event


def test_a_plain_and_a_fused_answer(tmp_path: Path) -> None:
    """Members that agree write their text; each is charged the tokens of its own vocabulary and its end."""
    host, engines = _host(tmp_path, {"letters": "abcab", "pairs": "abcab"})
    plain, fused = _ask(host, "letters", "p"), _ask(host, "duet", "f")
    assert _answer(plain)[0] == "abcab"
    text, end = _answer(fused)
    assert text == "abcab"
    assert isinstance(end, End)
    assert end.reason == "stop"
    assert [member.completion_tokens for member in end.members] == [6, 6]
    host.stop()
    assert all(engine.closed and not engine.live for engine in engines.values())


def test_the_heavier_member_wins(tmp_path: Path) -> None:
    """Where members disagree the weight decides, and the other goes on from what was chosen."""
    host, _ = _host(tmp_path, {"letters": "abc", "pairs": "acb"})
    assert _answer(_ask(host, "duet"))[0] == "abc"
    host.stop()


def test_a_loop_that_breaks_fails_everybody_and_says_so(tmp_path: Path) -> None:
    """After a crash every request gets an error worth retrying, later ones too, and `on_crash` is called
    once."""
    crashes: list[BaseException] = []
    host, _ = _host(tmp_path, {"letters": "ab!", "pairs": "abcab"}, crashes)
    waiting = [_ask(host, "letters", "x"), _ask(host, "duet", "y")]
    for events in waiting:
        end = _answer(events)[1]
        assert isinstance(end, Failure)
        assert end.error.status == 503
    while not crashes:
        pass
    assert [str(crash) for crash in crashes] == ["the device is gone"]
    assert not host.alive
    late = _answer(_ask(host, "letters", "z"))[1]
    assert isinstance(late, Failure)


def test_loading_that_fails_is_raised(tmp_path: Path) -> None:
    """`start` raises what a load raised."""
    (tmp_path / "tokenizer.json").write_text(_tokenizer(VOCABS["letters"], "bytes", ("<eos>",)))

    def load(spec: EngineSpec) -> Engine:
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        Host([EngineSpec("letters", tmp_path)], load=load).start()


def test_stopping_fails_what_still_runs(tmp_path: Path) -> None:
    """Requests that `stop` interrupts hear of it."""
    host, _ = _host(tmp_path, {"letters": "ab" * 4000, "pairs": "c"})
    events = _ask(host, "letters", max_tokens=7000)
    events.get(timeout=20)
    host.stop()
    assert isinstance(_answer(events)[1], Failure)


def test_a_cancelled_request_hears_nothing_more(tmp_path: Path) -> None:
    """Cancelling drops the request from its engines before the next step."""
    host, engines = _host(tmp_path, {"letters": "ab" * 4000, "pairs": "ab" * 4000})
    events = _ask(host, "duet", "gone")
    events.get(timeout=20)
    host.cancel("gone")
    assert _answer(_ask(host, "letters", "next", max_tokens=4))[0] == "abab"
    assert not any(engine.live for engine in engines.values())
    host.stop()
