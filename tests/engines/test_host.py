"""The step loop with engines that cost nothing: scripted logits over a tiny vocabulary instead of vLLM."""

from __future__ import annotations

import queue
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.engine import Engine, EngineSpec, Sampled
from engines.generation import Begun, End, Event, Failure, Generation, Piece, Sampling
from engines.host import FAILURES, FusionSpec, Host
from ensembles.tokens.base import Ask, Decision, Step, alone
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
        self.faults: list[int] = []
        self.forwards = 0

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
        self.forwards += 1
        if self.forwards - 1 in self.faults:
            raise RuntimeError("the device hiccups")
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

    crowded = False

    def kv_tokens(self) -> int:
        return 64

    def recover(self) -> None:
        self.abort(list(self.live))

    def close(self) -> None:
        self.closed = True


def _host(
    tmp_path: Path,
    scripts: Mapping[str, str],
    crashes: list[BaseException] | None = None,
    places: tuple[int, int] = (16, 1024),
    **fusing: Any,
) -> tuple[Host, dict[str, Any]]:
    specs = []
    for name, vocab in VOCABS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(_tokenizer(vocab, "bytes", ("<eos>",)))
        running, waiting = places
        specs.append(
            EngineSpec(name, tmp_path / name, max_model_len=64, max_running=running, max_waiting=waiting)
        )
    engines: dict[str, Any] = {}

    def load(spec: EngineSpec) -> Engine:
        engines[spec.name] = ScriptedEngine(spec, scripts[spec.name])
        return engines[spec.name]  # type: ignore[no-any-return]

    fusing.setdefault("fusion", GaC())
    fusion = FusionSpec("duet", ("letters", "pairs"), (0.6, 0.4), **fusing)
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


class FirstWord:
    """The second member writes the first symbol, the first one the rest."""

    def decide(self, step: Step) -> Decision:
        writer = 1 if step.memory is None else 0
        return alone(step, writer, "begun") if writer in step.logits else Ask(frozenset({writer}))


def test_a_word_that_came_of_the_prompt_alone_is_charged(tmp_path: Path) -> None:
    """A member that chose one token when it had read the prompt, and was never asked again, wrote one token."""
    host, _ = _host(tmp_path, {"letters": "bcab", "pairs": "abcab"}, fusion=FirstWord())
    text, end = _answer(_ask(host, "duet"))
    host.stop()
    assert text == "abcab"
    assert isinstance(end, End)
    assert [(member.prompt_tokens, member.completion_tokens) for member in end.members] == [(1, 6), (1, 1)]


def test_the_heavier_member_wins(tmp_path: Path) -> None:
    """Where members disagree the weight decides, and the other goes on from what was chosen."""
    host, _ = _host(tmp_path, {"letters": "abc", "pairs": "acb"})
    assert _answer(_ask(host, "duet"))[0] == "abc"
    host.stop()


def test_a_loop_that_breaks_fails_everybody_and_says_so(tmp_path: Path) -> None:
    """An engine that fails again and again brings the loop down: every request gets an error worth retrying, later
    ones too, and `on_crash` is called once."""
    crashes: list[BaseException] = []
    host, _ = _host(tmp_path, {"letters": "!", "pairs": "abcab"}, crashes)
    for n in range(FAILURES):
        end = _answer(_ask(host, ("letters", "duet")[n % 2], str(n)))[1]
        assert isinstance(end, Failure)
        assert end.error.status == 503
    while not crashes:
        pass
    assert [str(crash) for crash in crashes] == ["the device is gone"]
    assert not host.alive
    late = _answer(_ask(host, "letters", "z"))[1]
    assert isinstance(late, Failure)


def test_a_failure_is_its_engines_own(tmp_path: Path) -> None:
    """Who asks the engine whose step fails gets an error worth retrying; others, and what comes later, notice
    nothing."""
    host, engines = _host(tmp_path, {"letters": "abcab" * 3, "pairs": "abcab" * 3})
    engines["letters"].faults = [4]
    plain, other, fused = _ask(host, "letters", "x"), _ask(host, "pairs", "y"), _ask(host, "duet", "z")
    for events in (plain, fused):
        end = _answer(events)[1]
        assert isinstance(end, Failure)
        assert (end.error.status, end.error.code) == (503, "upstream_unavailable")
    assert _answer(other)[0] == "abcab" * 3
    assert _answer(_ask(host, "duet", "again"))[0] == "abcab" * 3
    host.stop()
    assert not any(engine.live for engine in engines.values())


@pytest.mark.parametrize("lost", ["letters", "pairs"])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_the_others_write_on(tmp_path: Path, lost: str, step: int) -> None:
    """With `drop`, a member that fails in the middle is left out: the rest of the text is the other's, and the end
    says so."""
    scripts = {"letters": "ab" * 10, "pairs": "ab" * 3 + "c" * 14}
    host, engines = _host(tmp_path, scripts, drop=True)
    engines[lost].faults = [step]
    text, end = _answer(_ask(host, "duet"))
    assert isinstance(end, End)
    other = "pairs" if lost == "letters" else "letters"
    assert text == scripts[other]
    assert [(out.model, out.why) for out in end.left_out] == [(lost, "failed")]
    assert end.left_out[0].at <= 6
    told = f'chorus_engine_left_out_total{{model="duet",member="{lost}",why="failed"}} 1.0'
    assert told in host.metrics()
    host.stop()
    assert not any(engine.live for engine in engines.values())


def test_a_busy_host_leaves_members_out(tmp_path: Path) -> None:
    """Above the threshold a fusion begins with those it keeps, says so before anything else, and asks nobody else."""
    scripts = {"letters": "ab" * 10, "pairs": "c" * 20}
    host, engines = _host(tmp_path, scripts, shed_above=2, keep=(1,))
    quiet = _ask(host, "duet", "1"), _ask(host, "letters", "2")
    busy = _ask(host, "duet", "3")
    begun = busy.get(timeout=20)
    assert isinstance(begun, Begun)
    assert [(out.model, out.why, out.at) for out in begun.left_out] == [("letters", "load", 0)]
    text, end = _answer(busy)
    assert text == scripts["pairs"]
    assert isinstance(end, End)
    assert end.left_out == begun.left_out
    assert [(m.model, m.prompt_tokens > 0) for m in end.members] == [("letters", False), ("pairs", True)]
    assert all(isinstance(_answer(events)[1], End) for events in quiet)
    alone = _answer(_ask(host, "duet", "4"))[1]
    assert isinstance(alone, End)
    assert not alone.left_out
    host.stop()
    assert not any(engine.live for engine in engines.values())


def test_a_full_engine_takes_no_more(tmp_path: Path) -> None:
    """Beyond its places a request is told to come back; a place is free again when who had it has left."""
    host, _ = _host(tmp_path, {"letters": "ab" * 4000, "pairs": "ab" * 4000}, places=(1, 1))
    first, second = _ask(host, "duet", "1", max_tokens=7000), _ask(host, "letters", "2", max_tokens=7000)
    for model in ("duet", "letters"):
        end = _answer(_ask(host, model, f"late {model}"))[1]
        assert isinstance(end, Failure)
        assert (end.error.status, end.error.code) == (429, "rate_limit_exceeded")
        assert "retry-after" in end.error.headers()
    assert 'chorus_engine_refused_total{model="duet"} 1.0' in host.metrics()
    first.get(timeout=20)
    second.get(timeout=20)
    host.cancel("1")
    host.cancel("2")
    assert _answer(_ask(host, "pairs", "3", max_tokens=2))[0] == "ab"
    assert _answer(_ask(host, "duet", "4", max_tokens=2))[0] == "ab"
    host.stop()


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


def test_who_comes_while_the_loop_ends_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was let in just before the loop ended, and put where nobody looks any more, fails like others."""
    host, _ = _host(tmp_path, {"letters": "ab", "pairs": "ab"})
    host.stop()
    monkeypatch.setattr(Host, "alive", True)  # as it was when the request looked
    assert isinstance(_ask(host, "letters").get(timeout=20), Failure)


def test_a_cancelled_request_hears_nothing_more(tmp_path: Path) -> None:
    """Cancelling drops the request from its engines before the next step."""
    host, engines = _host(tmp_path, {"letters": "ab" * 4000, "pairs": "ab" * 4000})
    events = _ask(host, "duet", "gone")
    events.get(timeout=20)
    host.cancel("gone")
    assert _answer(_ask(host, "letters", "next", max_tokens=4))[0] == "abab"
    assert not any(engine.live for engine in engines.values())
    host.stop()
