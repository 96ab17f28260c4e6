"""The engine host: N engines, one thread, one loop, any mix of plain and fused requests in the same steps.

    take what came in → every engine's forward → fusions decide on the rows → every engine finishes → wake who
    was asked for

The engines share the thread on purpose: their forwards use all cores anyway, and their logits meet without a
copy, a lock or a barrier. `submit` and `cancel` may be called from any thread; events come out of each
request's sink, in the loop's thread. What a method needs beside engines, another thread does. A request that raises
fails alone; when the loop itself raises, every
request fails, `on_crash` is called and the host is finished: the process should end and be started again."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import scan
from engines.byte_vocab import ByteVocab
from engines.decode import Decode, Joint, Member, Tally, Team
from engines.door import Door
from engines.embedding_rows import TeamTables
from engines.engine import Engine, EngineSpec, Sampled
from engines.fused_decode import FusedDecode
from engines.generation import Event, Failure, Generation, Sink
from engines.grammar import Grammar, GrammarCompiler
from engines.inbox import Begin, Inbox, News
from engines.metrics import EngineNumbers, Steps, exposition
from engines.own_words import OwnWords
from engines.plain_decode import PlainDecode
from engines.sampler_options import RANGES
from engines.search_decode import SearchDecode
from engines.span_decode import SpanDecode
from engines.spec_decode import SpecDecode
from engines.text_state import Feedback
from engines.union import Union
from engines.waiting import Waiting, set_spin
from ensembles.spans.base import SpanFusion
from ensembles.tokens.base import Binds, Drafts, Fusion, Prepares, Search, Weighs
from ensembles.tokens.gac import GaC
from protocol.errors import ChorusError, InternalError, UpstreamBusy, UpstreamUnavailable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FusionSpec", "Host"]

log = logging.getLogger("chorus.engines")


@dataclass(frozen=True, slots=True)
class FusionSpec:
    """A virtual model: names of engines (one may stand twice) with their weights, the method, and the member
    that counts."""

    name: str
    members: tuple[str, ...]
    weights: tuple[float, ...]
    fusion: Fusion | Search | SpanFusion
    main: int = 0
    feedback: Feedback = "append"
    drop: bool = False
    """Whether the others write on where a member fails."""
    shed_above: int | None = None
    """Generations under way from which on it begins with the members in `keep` alone; None: never."""
    keep: tuple[int, ...] = ()


_SEARCH = "its text is the best of several found by search, not drawn token by token"
_SPANS = "its text is chosen span by span"
CANNOT: Mapping[type, Mapping[str, str]] = {
    Search: dict.fromkeys(("logprobs", *RANGES, "logit_bias", "response_format"), _SEARCH),
    Prepares: {"chorus.weights": "it weighs its members by how they read the prompt"},
    Weighs: {"chorus.weights": "it weighs its members by the text"},
    SpanFusion: {
        "logprobs": f"{_SPANS}, so no token has one",
        "logit_bias": f"{_SPANS}, by members whose tokens are not the same",
        "response_format": f"{_SPANS}, each judged as a whole",
    },
}
"""Kind of fusion → field → why it cannot honour it."""
FAILURES = 3
"""Steps of an engine that may fail in a row; after that the process is better started anew."""


class Host:
    """Engines and fusions by name, and the loop that runs them. `start` loads; `stop` ends the loop."""

    def __init__(
        self,
        engines: Sequence[EngineSpec],
        fusions: Sequence[FusionSpec] = (),
        on_crash: Callable[[BaseException], None] = lambda error: None,
        *,
        load: Callable[[EngineSpec], Engine] = Engine.load,
        inbox: Inbox | None = None,
    ) -> None:
        self.engine_specs = {spec.name: spec for spec in engines}
        self.fusion_specs = {spec.name: spec for spec in fusions}
        self.vocabs: dict[str, ByteVocab] = {}
        self._on_crash = on_crash
        self._load_engine = load
        self._engines: dict[str, Engine] = {}
        self._teams: dict[str, Team] = {}
        self._alone: dict[str, Team] = {}
        """Engines as teams of one, which write what a grammar wants of them; made when first asked for."""
        self._compilers: dict[tuple[str, ...], GrammarCompiler] = {}
        self._compiling = threading.Lock()
        self._live: dict[str, Decode] = {}
        self._inbox = inbox or Inbox()
        self._awaited: dict[str, Callable[[Any], None]] = {}
        """By request for which something is done aside, who is told what came of it."""
        # One thread: what is done aside takes at most one core from the engines.
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="chorus-aside")
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._ending = threading.Lock()
        self._ended = False
        """Nobody reads the inbox any more."""
        self._thread = threading.Thread(target=self._run, name="chorus-engines", daemon=True)
        self._steps = Steps()
        self._door = Door(engines)
        self._failures: Counter[Engine] = Counter()

    # ── any thread ──────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Load every engine and start the loop; returns when requests can be served. Raises what loading
        raised."""
        self._inbox.open(self._crash)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """End the loop after the current step; requests still running fail. Returns when it has ended."""
        self._inbox.put(None)
        self.wait()
        self._inbox.close()

    def wait(self) -> None:
        """Returns when the loop has ended."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._ready.is_set() and self._failed is None and self._thread.is_alive()

    def members_of(self, model: str) -> tuple[str, ...]:
        """The engines behind a public name: itself for a plain model. Raises KeyError for an unknown name."""
        if model in self.fusion_specs:
            return self.fusion_specs[model].members
        return (self.engine_specs[model].name,)

    def cannot(self, model: str) -> Mapping[str, str]:
        """Fields of a request that `model` cannot honour, with the reason."""
        fusion = self.fusion_specs[model].fusion if model in self.fusion_specs else None
        return next((fields for kind, fields in CANNOT.items() if isinstance(fusion, kind)), {})

    def grammar(self, model: str, schema: Mapping[str, Any], *, strict: bool) -> Grammar:
        """What binds a text of `model` to a JSON schema. May compute for seconds. Raises `BadRequest`."""
        members = self.members_of(model)
        with self._compiling:
            if model not in self._teams and model not in self._alone:
                alone = Member(self._engines[model], self.vocabs[model], 1.0)
                self._alone[model] = Team((alone,), Union.of([alone.vocab]), GaC())
            if members not in self._compilers:
                union = (self._teams.get(model) or self._alone[model]).union
                self._compilers[members] = GrammarCompiler(union.symbols, union.eos)
        return self._compilers[members].compile(schema, strict=strict)

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation; its events go to `sink`. Ids must be unique among live generations. Where its engines
        have taken on all they may, it fails at once, and the caller is told when to come back."""
        if not self.alive:
            sink(Failure(UpstreamUnavailable("The engine host is not running.")))
            return
        try:
            self._door.enter(generation, self.members_of(generation.model))
        except UpstreamBusy as busy:
            self._steps.refused[generation.model] += 1
            sink(Failure(busy))
            return
        with self._ending:
            if not self._ended:
                self._inbox.put(Begin(generation, sink))
                return
        sink(Failure(UpstreamUnavailable("The engine host has stopped.")))

    def cancel(self, generation_id: str) -> None:
        """Drop a generation before the next step; its sink hears nothing more. Unknown ids are ignored."""
        self._door.leave(generation_id)
        self._inbox.put(generation_id)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per engine, requests running and waiting."""
        return {name: engine.counts() for name, engine in self._engines.items()}

    def tallies(self) -> dict[str, Tally]:
        """Per fusion whose members draft, how that went since the start."""
        return {
            name: replace(team.tally) for name, team in self._teams.items() if isinstance(team.fusion, Drafts)
        }

    def kv_usage(self) -> dict[str, float]:
        """Per engine, the share of its KV cache in use."""
        return {name: engine.kv_usage() for name, engine in self._engines.items()}

    def metrics(self) -> str:
        """For Prometheus: what the loop counted, and every engine now."""
        usage = self.kv_usage()
        engines = {
            name: EngineNumbers(
                running, waiting, usage[name], int(self.engine_specs[name].kv_cache_gib * 2**30)
            )
            for name, (running, waiting) in self.counts().items()
        }
        return exposition(engines, self.fusion_specs.keys(), self._steps)

    # ── the loop's thread ───────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._load()
            waiting = Waiting(set_spin())
            self._ready.set()
            while self._take():
                waiting.look()
                self._step()
        except BaseException as error:  # noqa: BLE001  callers must hear of it, and the process must not linger
            self._crash(error)
        else:
            self._fail_all()
            self._helper.shutdown(cancel_futures=True)
            for engine in self._engines.values():
                engine.close()

    def _crash(self, error: BaseException) -> None:
        """The steps cannot go on; in any thread, since the loop's own may hang in a step with other processes."""
        with self._ending:
            known, self._failed = self._failed is not None, self._failed or error
        self._fail_all()
        if known:
            return
        log.critical("the engine host's step loop broke", exc_info=error)
        self._inbox.close()
        self._ready.set()
        self._helper.shutdown(wait=False, cancel_futures=True)
        self._on_crash(error)

    def _load(self) -> None:
        # Those of several ranks first: they set up the group in which the others are alone.
        for name, spec in sorted(self.engine_specs.items(), key=lambda item: -item[1].tensor_parallel):
            log.info("loading %s from %s (%s)", name, spec.folder, spec.dtype)
            self.vocabs[name] = ByteVocab.load(spec.folder)
            self._engines[name] = self._load_engine(spec)
            if spec.kv_commit is not None:
                self._door.room[name] = spec.kv_commit * self._engines[name].kv_tokens()
        members_of_fusions = {member for fused in self.fusion_specs.values() for member in fused.members}
        for dtype in {self.engine_specs[member].dtype for member in members_of_fusions}:
            scan.compile_kernels(dtype)
        unions: dict[tuple[str, ...], Union] = {}
        tables: dict[tuple[Path, str], Tensor] = {}
        for name, fused in self.fusion_specs.items():
            if fused.members not in unions:
                unions[fused.members] = Union.of([self.vocabs[member] for member in fused.members])
            total = sum(fused.weights)
            members = tuple(
                Member(self._engines[member], self.vocabs[member], weight / total)
                for member, weight in zip(fused.members, fused.weights, strict=True)
            )
            fusion, union = fused.fusion, unions[fused.members]
            if isinstance(fusion, Binds):
                folders = [self.engine_specs[member].folder for member in fused.members]
                log.info("binding %s to its models", name)
                fusion = fusion.bind(TeamTables(union, folders, tables))
            readers = (
                tuple(OwnWords(member.vocab, union, m) for m, member in enumerate(members))
                if isinstance(fusion, SpanFusion)
                else ()
            )
            self._teams[name] = Team(
                members, union, fusion, fused.main, fused.feedback, readers=readers, drop=fused.drop
            )

    def _take(self) -> bool:
        """Empty the inbox, waiting only where there is nothing to step. False when the host is to stop."""
        idle = not any(engine.has_work for engine in self._engines.values())
        idle |= bool(self._live) and all(decode.waits for decode in self._live.values())
        for item in self._inbox.take(block=idle):
            if item is None:
                return False
            if isinstance(item, str):
                self._drop(self._live.get(item))
            elif isinstance(item, News):
                self._tell(item)
            else:
                self._begin(item.generation, item.sink)
        return True

    def _begin(self, generation: Generation, sink: Sink) -> None:
        decode: Decode
        team = self._teams.get(generation.model)
        if generation.sampling.grammar is not None:
            team = team or self._alone[generation.model]
        if team is not None:
            kind: Callable[[Generation, Team, Sink], Joint] = FusedDecode
            if isinstance(team.fusion, Search):
                kind = SearchDecode
            elif isinstance(team.fusion, Drafts):
                kind = SpecDecode
            elif isinstance(team.fusion, SpanFusion):
                beside = partial(self._beside, generation.id)
                kind = partial(SpanDecode, beside=beside, clock=lambda: self._inbox.now)
            decode = kind(generation, team, sink)
        else:
            engine = self._engines[generation.model]
            decode = PlainDecode(generation, engine, self.vocabs[generation.model], sink)
        self._live[decode.id] = decode
        self._steps.begun[generation.model] += 1
        self._steps.live[generation.model] += 1
        if isinstance(decode, Joint):
            self._shed(decode, generation)
        self._guarded(decode, decode.start)

    def _shed(self, decode: Joint, generation: Generation) -> None:
        """Let a fusion begin with fewer members where the host has much to do; not one that weighs them itself."""
        spec = self.fusion_specs.get(decode.model)
        if spec is None or spec.shed_above is None or len(self._live) <= spec.shed_above:
            return
        weights = generation.weights or spec.weights
        out = [m for m, w in enumerate(weights) if m not in spec.keep and w > 0]
        if out and any(weights[m] > 0 for m in spec.keep):
            decode.begin_without(out)
            for m in out:
                self._steps.left_out[decode.model, spec.members[m], "load"] += 1

    def _beside(self, id: str, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Have `call` done by the helping thread for a live request, and `then` told what it returned."""

        def work() -> Any:
            return call() if id in self._live else None  # it may be cancelled while it waits for its turn

        def done(future: Future[Any]) -> None:
            self._inbox.put(News(id, future))

        self._awaited[id] = then
        if self._inbox.leads:
            self._helper.submit(work).add_done_callback(done)

    def _tell(self, news: News) -> None:
        """Let a request go on, if it still is there. What was raised aside fails it."""
        decode = self._live.get(news.id)
        if decode is not None:
            then = self._awaited.pop(news.id)
            self._guarded(decode, lambda: then(news.outcome.result()))
            if decode.done:
                self._drop(decode)

    def _step(self) -> None:
        import torch

        began = time.perf_counter()
        failed: dict[Engine, Exception] = {}
        with torch.inference_mode():
            rows: dict[Engine, Mapping[str, Tensor]] = {}
            for name, engine in self._engines.items():
                if engine.has_work:
                    try:
                        rows[engine] = self._forward(name, engine)
                    except Exception as error:  # whatever a device or a kernel may raise
                        log.exception("a forward of %s failed", name)
                        failed[engine] = error
            forced: dict[Engine, dict[str, Sequence[int]]] = {engine: {} for engine in rows}
            fused = [decode for decode in self._live.values() if isinstance(decode, Joint)]
            for decode in fused:
                deciding = time.perf_counter()
                self._advance(decode, rows, forced)
                self._steps.decide_s[decode.model] += time.perf_counter() - deciding
            sampled: list[tuple[str, Sampled]] = []
            for engine in rows:
                try:
                    sampled += engine.finish(forced[engine]).items()
                except Exception as error:
                    log.exception("a step of %s failed behind its forward", engine.spec.name)
                    failed[engine] = error
        if not self._inbox.alone:
            drawn = [(name, step.ids) for name, step in sampled]
            self._inbox.agree(([list(each.items()) for each in forced.values()], drawn))
        for name, step in sampled:
            plain = self._live.get(name)
            if isinstance(plain, PlainDecode):
                self._guarded(plain, partial(plain.sampled, step))
        for engine, fault in failed.items():
            self._lose(engine, fault)
        for engine in rows.keys() - failed.keys():
            self._failures.pop(engine, None)
        for decode in fused:
            if not decode.done:
                self._guarded(decode, decode.wake)
        for finished in [decode for decode in self._live.values() if decode.done]:
            self._drop(finished)
        if rows and not any(rows.values()):
            self._make_room([engine for engine in rows if engine.crowded])
        self._steps.steps += 1
        self._steps.step_s += time.perf_counter() - began

    def _lose(self, engine: Engine, error: Exception) -> None:
        """An engine's step failed: whoever is in it fails, or goes on without. Raises `error` where it is beyond
        help."""
        name = engine.spec.name
        self._failures[engine] += 1
        self._steps.failures[name] += 1
        if self._failures[engine] >= FAILURES or not self._inbox.alone:  # other ranks know nothing of it
            raise error
        for decode in list(self._live.values()):
            if decode.done or all(at is not engine for at, _ in decode.requests()):
                continue
            survived = self._survives(decode, engine) if isinstance(decode, Joint) else False
            if survived:
                self._steps.left_out[decode.model, name, "failed"] += 1
            elif survived is not None:
                decode.done = True
                decode.sink(
                    Failure(UpstreamUnavailable(f"The model {name!r} failed in the middle of the answer."))
                )
        engine.recover()

    def _survives(self, decode: Joint, engine: Engine) -> bool | None:
        """Whether it goes on without the engine's members; None where it failed over that, and its caller knows."""
        survived: bool | None = None

        def go_on() -> None:
            nonlocal survived
            survived = decode.lose(engine)

        self._guarded(decode, go_on)
        return survived

    def _make_room(self, crowded: Sequence[Engine]) -> None:
        """Nobody moves and somebody waits for room: members that stall there for others, which wait elsewhere in the
        same way, give up their places, of the latest request first. The earliest one always keeps what it has."""
        if not crowded:
            return
        for decode in reversed(list(self._live.values())):
            if isinstance(decode, Joint) and _yielded(decode, crowded):
                self._steps.yielded += 1
                return

    def _forward(self, name: str, engine: Engine) -> Mapping[str, Tensor]:
        began = time.perf_counter()
        rows = engine.forward()
        self._steps.forward_s[name] += time.perf_counter() - began
        return rows

    def _advance(
        self,
        decode: Joint,
        rows: Mapping[Engine, Mapping[str, Tensor]],
        forced: Mapping[Engine, dict[str, Sequence[int]]],
    ) -> None:
        """Let one fusion decide, and enter what its members go on with."""
        heard = {
            m: (engine, name)
            for m, (engine, name) in decode.member_requests().items()
            if name in rows.get(engine, ())
        }
        for engine, name in heard.values():
            forced[engine][name] = ()
        if not heard:
            return

        def decide() -> None:
            for m, ids in decode.advance(
                {m: rows[engine][name] for m, (engine, name) in heard.items()}
            ).items():
                engine, name = heard[m]
                forced[engine][name] = ids

        self._guarded(decode, decide)

    def _guarded(self, decode: Decode, act: Callable[[], None]) -> None:
        """Run `act`; what it raises fails this request and no other."""
        try:
            act()
        except ChorusError as error:
            decode.done = True
            decode.sink(Failure(error))
        except Exception:
            log.exception("request %s failed", decode.id)
            decode.done = True
            decode.sink(
                Failure(
                    InternalError(f"The request failed inside the engine host; see its log for {decode.id}.")
                )
            )

    def _drop(self, decode: Decode | None) -> None:
        """Forget a request and free what it holds in its engines."""
        if decode is None:
            return
        if self._live.pop(decode.id, None) is not None:
            self._steps.live[decode.model] -= 1
            self._door.leave(decode.id)
            self._awaited.pop(decode.id, None)
        for engine, name in decode.requests():
            engine.abort([name])

    def _fail_all(self) -> None:
        gone: Event = Failure(UpstreamUnavailable("The engine host stopped while it was answering."))
        waiting = list(self._live.values())
        self._live.clear()
        for decode in waiting:
            decode.sink(gone)
        with self._ending:
            self._ended = True
        for item in self._inbox.left():
            if isinstance(item, Begin):
                item.sink(gone)


def _yielded(decode: Joint, crowded: Sequence[Engine]) -> bool:
    given = [decode.yield_room(engine) for engine in crowded]  # in each of them, not only in the first
    return any(given)
