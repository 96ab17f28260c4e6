"""One float32 host with the real pair, loaded once for every test that asks for it, and a way to ask it."""

from __future__ import annotations

import itertools
import math
import queue
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.byte_vocab import ByteVocab
from engines.embedding_rows import EmbeddingRows
from engines.engine import EngineSpec, prepare_environment
from engines.generation import End, Event, Failure, Generation, Piece, Sampling, TokenLogprob
from engines.host import FusionSpec, Host
from engines.templates import Prompting, prompting
from ensembles.spans.base import Judge, Propose, Score, Span, SpanFusion, Task, Writing
from ensembles.spans.cool_fusion import CoolFusion
from ensembles.spans.ensemble_hub import EnsembleHub
from ensembles.spans.specfuse import SpecFuse
from ensembles.spans.sweetspan import SweetSpan
from ensembles.steps.le_mcts import LeMCTS
from ensembles.tokens.base import Ask, Decision, Mixture, Step
from ensembles.tokens.citer import CITER
from ensembles.tokens.cp_delta import CPDelta
from ensembles.tokens.deepen import DeePEn
from ensembles.tokens.etr import ETR, Turn
from ensembles.tokens.gac import GaC
from ensembles.tokens.mot import MoT
from ensembles.tokens.packllm import PackLLM
from ensembles.tokens.spec_ensemble import SpecEnsemble
from ensembles.tokens.transformer_copilot import TransformerCopilot
from ensembles.tokens.unite import UniTE

if TYPE_CHECKING:
    from torch import Tensor

prepare_environment()  # before any test imports torch: OpenMP looks only once

SMOL, GEMMA = "smollm2-135m", "gemma3-270m"
FOLDERS = {SMOL: "smollm2-135m-instruct", GEMMA: "gemma3-270m"}
PAIR = (SMOL, GEMMA)

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Translate 'good morning' into French and Japanese.",
)


class Dictation:
    """A fusion that makes every member write `symbols`, and then listens to one member alone."""

    def __init__(self, symbols: tuple[bytes, ...], then: int) -> None:
        self.symbols, self.then, self._next = symbols, then, 0

    def decide(self, step: Step) -> Decision:
        import torch

        if self._next < len(self.symbols):
            if missing := set(range(len(step.weights))) - step.logits.keys():
                return Ask(frozenset(missing))
            q = torch.zeros(step.alphabet.size)
            q[step.alphabet.symbols.index(self.symbols[self._next])] = 1  # type: ignore[attr-defined]
            self._next += 1
            return Mixture(q)
        if self.then not in step.logits:
            return Ask(frozenset({self.then}))
        return Mixture(step.alphabet.project(self.then, step.logits[self.then]))


@dataclass
class Overheard:
    """A span method, and what its members said of each other's spans: a table a round, by judge and span."""

    method: SpanFusion
    tables: list[list[list[Score]]] = field(default_factory=list)

    def write(self, task: Task) -> Writing:
        work, result = self.method.write(task), None
        spans: tuple[Span, ...] = ()
        while True:
            asked = work.send(result)
            result = yield asked
            if isinstance(asked, Propose):
                spans = result
            elif isinstance(asked, Judge):
                said = {(a.member, a.text, a.ended): s for a, s in zip(asked.asks, result, strict=True)}
                said |= {(span.author, span.text, span.ended): span.score for span in spans}
                members = range(len(task.weights))
                self.tables.append([[said[m, span.text, span.ended] for span in spans] for m in members])


OVERHEARD = Overheard(CoolFusion())


class Onlooker:
    """The mean of both members, which keeps the hidden states it was shown: a list an answer, as they began."""

    def __init__(self) -> None:
        self.layers = {0: (0, 7, 29, 30), 1: (0, 9, 17, -1)}
        self.answers: list[list[dict[int, Tensor]]] = []

    def decide(self, step: Step) -> Decision:
        decision = GaC().decide(step)
        if isinstance(decision, Ask):
            return decision
        seen = step.memory
        if seen is None:
            self.answers.append(seen := [])
        assert isinstance(seen, list)
        seen.append({m: states.clone() for m, states in step.states.items()})
        return Mixture(decision.q, decision.symbols, memory=seen)


ONLOOKER = Onlooker()


class Called:
    """ETR whose meta model calls its expert after so many of its own symbols."""

    def __init__(self, after: int) -> None:
        self.after, self.layers = after, {0: (-1,)}

    def decide(self, step: Step) -> Decision:
        import torch

        turn = step.memory if isinstance(step.memory, Turn) else Turn(0)
        bias = math.inf if turn.written >= self.after else -math.inf
        return ETR(bias=bias, experts=torch.zeros(1, 576)).decide(step)


CALLED = Called(after=5)


class Broken:
    """A fusion with a bug."""

    def decide(self, step: Step) -> Decision:
        raise RuntimeError("a bug in a method")


SPANS: dict[str, SpanFusion] = {
    "cool": CoolFusion(),
    "sweet": SweetSpan(words=2),
    "em": SpecFuse(window=6),
    "hub": EnsembleHub(segment=12),
    "mcts": LeMCTS(iterations=6, tokens=12, reward=lambda question, answers: [len(a) / 999 for a in answers]),
}

ARTEFACTS = Path(__file__).parents[2] / "config" / "artefacts"

DEEPEN = {"eta": 0.3, "anchors": 512, "rows": 64}
"""DeePEn's options here: small tables, and a rate at which the helper is heard."""

DICTATED = tuple(
    text.encode() for text in (" Zürich", " and", "\n\n\n\n", "こんにちは", " responsibilities", "\r\n", "7")
)
"""Symbols that one of the two vocabularies has as one token and the other as up to eight."""


@dataclass
class Reply:
    """Everything a sink heard."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    end: End | None = None
    failure: Failure | None = None


@dataclass
class Ticket:
    """A generation under way."""

    id: str
    events: queue.SimpleQueue[Event]

    def result(self, timeout: float = 300) -> Reply:
        """Wait for the end."""
        reply = Reply()
        while True:
            event = self.events.get(timeout=timeout)
            if isinstance(event, Piece):
                reply.text += event.text
                reply.pieces.append(event.text)
                reply.tokens += event.tokens
            elif isinstance(event, End):
                reply.end = event
                return reply
            else:
                reply.failure = event
                return reply


@dataclass(frozen=True)
class Asker:
    """Sends chat questions to a host and waits for the answers."""

    host: Host
    prompts: dict[str, Prompting]
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def prompt_ids(self, model: str, question: str) -> tuple[tuple[int, ...], ...]:
        """The prompt of every member."""
        messages = [{"role": "user", "content": question}]
        return tuple(
            tuple(self.host.vocabs[m].encode_prompt(self.prompts[m].render(messages).text))
            for m in self.host.members_of(model)
        )

    def send(self, model: str, question: str, **sampling: object) -> Ticket:
        """Submit; greedy unless told otherwise."""
        return self.send_ids(model, self.prompt_ids(model, question), **sampling)

    def send_ids(self, model: str, prompts: tuple[tuple[int, ...], ...], **sampling: object) -> Ticket:
        """Submit token ids."""
        asked = Sampling(**{"temperature": 0.0, "max_tokens": 20, **sampling})  # type: ignore[arg-type]
        ticket = Ticket(f"test-{next(self._ids)}", queue.SimpleQueue())
        self.host.submit(Generation(ticket.id, model, prompts, asked), ticket.events.put)
        return ticket

    def all(self, *asked: tuple[str, str], **sampling: object) -> list[Reply]:
        """The answers to many (model, question) pairs that decode side by side."""
        return [ticket.result() for ticket in [self.send(*pair, **sampling) for pair in asked]]

    def __call__(self, model: str, question: str, **sampling: object) -> Reply:
        return self.send(model, question, **sampling).result()


@contextmanager
def serving(specs: Sequence[EngineSpec], fusions: Sequence[FusionSpec]) -> Iterator[Asker]:
    """A host of these, for as long as the context lasts."""
    host = Host(specs, fusions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM and its dependencies warn while they are imported
        host.start()
    try:
        yield Asker(host, {spec.name: prompting(spec.folder) for spec in specs})
    finally:
        host.stop()


def expert_token(weights: Callable[[str], Path]) -> Tensor:
    """ETR's E with an expert that is called where SmolLM2 would write " is"."""
    folder = weights(FOLDERS[SMOL])
    word = ByteVocab.load(folder).ids[b" is"][0]
    return 1.15 * EmbeddingRows(folder).rows("output")[word].float()[None]


def _looking(weights: Callable[[str], Path]) -> list[FusionSpec]:
    """Methods that look into models, with the shipped artefacts, so that each has a say."""
    methods = {
        "citer": CITER(tau=0.95).load(PAIR, {"router": ARTEFACTS / "citer"}),
        "copilot": TransformerCopilot(strength=1.0).load(PAIR, {"copilot": ARTEFACTS / "copilot"}),
        "thoughtful": MoT(writer=0).load(PAIR, {"mixture": ARTEFACTS / "mot"}),
    }
    found = [FusionSpec(name, PAIR, (0.5, 0.5), method) for name, method in methods.items()]
    etr = ETR(experts=expert_token(weights))
    return [*found, FusionSpec("etr-words", PAIR, (0.5, 0.5), etr, feedback="rejoin")]


@pytest.fixture(scope="session")
def ask(weights: Callable[[str], Path]) -> Iterator[Asker]:
    """The real pair in float32, plain and in every fusion the tests need; an engine may be two members of
    one."""
    # Different small steps, so that prompts are read in pieces and members come to the first sync point apart.
    pieces = {SMOL: 24, GEMMA: 64}
    specs = [
        EngineSpec(name, weights(FOLDERS[name]), "float32", 512, 0.25, 16, pieces[name]) for name in PAIR
    ]
    fusions = [
        FusionSpec("duet", PAIR, (0.5, 0.5), GaC()),
        FusionSpec("first-only", PAIR, (1.0, 0.0), GaC()),
        FusionSpec("second-only", PAIR, (0.0, 1.0), GaC(), main=1),
        FusionSpec("smol-twice", (SMOL, SMOL), (0.5, 0.5), GaC()),
        FusionSpec("gemma-thrice", (GEMMA,) * 3, (1, 1, 1), GaC()),
        FusionSpec("gate-open", PAIR, (0.5, 0.5), GaC(threshold=0.0)),
        FusionSpec("gate-shut", PAIR, (0.5, 0.5), GaC(threshold=1.0)),
        FusionSpec("dictation-smol", PAIR, (0.5, 0.5), Dictation(DICTATED, 0)),
        FusionSpec("dictation-gemma", PAIR, (0.5, 0.5), Dictation(DICTATED, 1), main=1),
        FusionSpec("dictation-retail", PAIR, (0.5, 0.5), Dictation(DICTATED, 0), feedback="retail"),
        FusionSpec("dictation-retokenise", PAIR, (0.5, 0.5), Dictation(DICTATED, 0), feedback="retokenise"),
        FusionSpec("unite", PAIR, (0.5, 0.5), UniTE()),
        FusionSpec("unite-twice", (SMOL, SMOL), (0.5, 0.5), UniTE()),
        FusionSpec("unite-first-only", PAIR, (1.0, 0.0), UniTE()),
        FusionSpec("unite-second-only", PAIR, (0.0, 1.0), UniTE(), main=1),
        FusionSpec("cp-delta", PAIR, (0.5, 0.5), CPDelta()),
        FusionSpec("cp-delta-twice", (SMOL, SMOL), (0.5, 0.5), CPDelta()),
        FusionSpec("pack-sim", PAIR, (0.5, 0.5), PackLLM("sim")),
        FusionSpec("pack-opt", PAIR, (0.5, 0.5), PackLLM()),
        FusionSpec("pack-twice", (SMOL, SMOL), (0.5, 0.5), PackLLM()),
        FusionSpec("deepen", PAIR, (0.5, 0.5), DeePEn(**DEEPEN)),  # type: ignore[arg-type]
        FusionSpec("deepen-twice", (SMOL, SMOL), (0.5, 0.5), DeePEn(**DEEPEN)),  # type: ignore[arg-type]
        FusionSpec("spec", PAIR, (0.5, 0.5), SpecEnsemble(drafts=(3, 1))),
        FusionSpec("spec-cp-delta", PAIR, (0.5, 0.5), SpecEnsemble("cp-delta")),
        FusionSpec("spec-twice", (SMOL, SMOL), (0.5, 0.5), SpecEnsemble(drafts=2)),
        *(
            FusionSpec(name, members, (0.5, 0.5), method, feedback="retail")
            for kind, method in SPANS.items()
            for name, members in ((kind, PAIR), (f"{kind}-twice", (SMOL, SMOL)))
        ),
        FusionSpec("overheard", PAIR, (0.5, 0.5), OVERHEARD, feedback="retail"),
        FusionSpec("citer-never", PAIR, (0.5, 0.5), CITER(tau=0)),
        FusionSpec("citer-always", PAIR, (0.5, 0.5), CITER(tau=1), main=1),
        FusionSpec("etr-never", PAIR, (0.5, 0.5), ETR(bias=-math.inf), feedback="rejoin"),
        FusionSpec("etr-called", PAIR, (0.5, 0.5), CALLED, feedback="rejoin"),
        *_looking(weights),
        FusionSpec("onlooker", PAIR, (0.5, 0.5), ONLOOKER),
        FusionSpec("broken", PAIR, (0.5, 0.5), Broken()),
    ]
    with serving(specs, fusions) as asker:
        yield asker
