"""Train the latent mixture of `mot` for two or more frozen models: `python -m engines.train_mot`.

Each step reads some right answers once for every model as the writer: the others read the same text first, in the
tokens that the writer's would be fed to them as, and what they think goes into the writer's layers. Learnt from is

    Σ_w loss_w  +  Σ_w π_w cost_w  +  balance · M Σ_w π̄_w²

the writer's loss in nats a token; the expected cost, nats a byte, of the router's choice π, through π alone; and how
unevenly the router uses the models. Experts are frozen. Answers come from a table of graded answers, of which every
eighth question is held out and serves the card: loss with and without the mixture, and the router's choices."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import lessons
from engines.byte_vocab import ByteVocab, Unencodable
from engines.embedding_rows import digest_of
from engines.shared_text import common_run
from engines.templates import Prompting, prompting
from engines.weights import Home, ensure, folders
from ensembles.networks.attention import AHEAD
from ensembles.networks.learner import Learner
from ensembles.networks.mixture import Latents, Mixture
from ensembles.tokens.mot import Fitted, stacks
from outcomes.embedder import load_embedder

if TYPE_CHECKING:
    import torch

__all__ = ["Card", "Expert", "Plan", "Text", "evaluate", "main", "next_logits", "text_in", "text_of", "train"]

ENCODER = "all-minilm-l6-v2-int8"
"""The frozen encoder's weights."""
MEMBERS = ("smollm2-135m-instruct", "gemma3-270m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is learnt. `most`: answers held out that the card looks at."""

    steps: int = 24
    batch: int = 4
    points: int = 3
    size: int = 64
    rate: float = 2e-3
    balance: float = 0.05
    most: int = 12
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """Of the answers held out: loss of each member as the writer, nats a token, alone and with the mixture; how many
    answers got likelier; and nats a byte with the mixture where the router, always the better single member, and an
    oracle choose the writer. `share`: how often the router chose each."""

    answers: int
    alone: tuple[float, ...]
    mixed: tuple[float, ...]
    likelier: tuple[int, ...]
    routed: float
    best_single: float
    oracle: float
    share: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """A frozen model of the transformers library, with what is needed to read for it."""

    model: Any
    vocab: ByteVocab
    prompts: Prompting
    digest: str

    @classmethod
    def load(cls, folder: Path) -> Expert:
        model = lessons.load(folder)
        model.requires_grad_(requires_grad=False)
        return cls(model, ByteVocab.load(folder), prompting(folder), digest_of(folder))

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.model.model.layers)

    @contextmanager
    def visited(
        self, points: int, visit: Callable[[int, torch.Tensor], torch.Tensor | None]
    ) -> Iterator[None]:
        """Have `visit(point, states)` called behind each stack of layers; what it returns is added there."""
        inner = self.model.model
        readers = [*inner.layers, inner.norm]

        def hook(point: int) -> Any:
            def see(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
                change = visit(point, given[0])
                return None if change is None else (given[0] + change.to(given[0].dtype), *given[1:])

            return see

        ends = stacks(self.depth, points)
        hooks = [readers[end].register_forward_pre_hook(hook(q)) for q, end in enumerate(ends)]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()


@dataclass(frozen=True, slots=True)
class Text:
    """An answer as `writer` writes it: by member the ids, prompt and answer, and the byte at which each ends, 0 where
    the prompt does. `start`: where the writer's answer begins; `asked`: what the members' prompts have in common."""

    writer: int
    ids: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, ...], ...]
    start: int
    asked: str

    @property
    def size(self) -> int:
        """Bytes of the answer."""
        return max(1, self.ends[self.writer][-1])


def text_of(experts: Sequence[Expert], writer: int, answer: lessons.Answer) -> Text:
    """Raises `Unencodable` for an answer that some member cannot write."""
    read = [lessons.lesson(expert.vocab, expert.prompts, answer) for expert in experts]
    return text_in(experts, writer, [lesson.prompt for lesson in read], read[writer].answer)


def text_in(
    experts: Sequence[Expert], writer: int, prompts: Sequence[Sequence[int]], own: Sequence[int]
) -> Text:
    """The writer's tokens `own` behind the members' prompts, each of them fed to the others as the engine host does.
    Raises `Unencodable`."""
    pieces = [experts[writer].vocab.emits[i] for i in own]
    ids, ends = [], []
    for m, (expert, prompt) in enumerate(zip(experts, prompts, strict=True)):
        fed = own if m == writer else [i for piece in pieces for i in expert.vocab.encode(piece)]
        ids.append((*prompt, *fed))
        before = len(expert.vocab.text_of(prompt))
        ends.append(tuple(end - before for end in accumulate(len(expert.vocab.emits[i]) for i in ids[-1])))
    pairs = zip(experts, prompts, strict=True)
    shared = common_run([expert.vocab.text_of(prompt) for expert, prompt in pairs])
    return Text(writer, tuple(ids), tuple(ends), len(prompts[writer]), shared.decode(errors="replace"))


def next_logits(
    experts: Sequence[Expert], mixture: Mixture, texts: Sequence[Text], active: frozenset[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of texts with one writer: its logits before each token of the answers, (n, |V|), those tokens, (n,), and the text
    each is of, (n,). Only the active members are read."""
    import torch

    writer = texts[0].writer
    latents = Latents(mixture, writer, active)
    order = [*sorted(active - {writer}), writer]
    states = None
    for m in order:
        longest = max(len(text.ids[m]) for text in texts)
        ids, ends = (
            torch.zeros(len(texts), longest, dtype=torch.int64),
            torch.full((len(texts), longest), AHEAD),
        )
        for row, text in enumerate(texts):
            ids[row, : len(text.ids[m])] = torch.tensor(text.ids[m])
            ends[row, : len(text.ids[m])] = torch.tensor(text.ends[m])

        def visit(point: int, x: torch.Tensor, m: int = m, ends: torch.Tensor = ends) -> torch.Tensor | None:
            return latents.visit(m, point, 0, x, ends)

        with experts[m].visited(mixture.points, visit):
            states = experts[m].model.model(ids).last_hidden_state
    where = [(row, i) for row, text in enumerate(texts) for i in range(text.start, len(text.ids[writer]))]
    rows, at = torch.tensor(where).unbind(1)
    assert states is not None
    labels = torch.tensor([texts[row].ids[writer][i] for row, i in where])
    return experts[writer].model.lm_head(states[rows, at - 1]).float(), labels, rows


def train(experts: Sequence[Expert], names: Sequence[str], out: Path, table: Path, plan: Plan) -> Card:
    """Train a mixture of the experts, and write its artefact to `out`. Takes minutes."""
    import torch

    encoder = load_embedder(ensure([ENCODER])[ENCODER])
    learnt, kept = lessons.answers(table)
    widths = [expert.model.config.hidden_size for expert in experts]
    mixture = Mixture.new(widths, encoder.dimensions, points=plan.points, size=plan.size, seed=plan.seed)
    learner = Learner(mixture.weights, plan.rate, plan.steps, seed=plan.seed)
    chance = torch.Generator().manual_seed(plan.seed)
    for number in range(plan.steps):
        drawn = torch.randint(len(learnt), (plan.batch,), generator=chance).tolist()
        batch = [*_readable(experts, [learnt[i] for i in drawn])]
        vectors = torch.from_numpy(encoder.embed([texts[0].asked for texts in batch]))

        def loss(batch: list[tuple[Text, ...]] = batch, vectors: torch.Tensor = vectors) -> torch.Tensor:
            return _loss(experts, mixture, batch, vectors, plan.balance)

        print(f"{number + 1:>4} {learner.step(loss):.4f}", flush=True)
    card = evaluate(experts, mixture, [*islice(_readable(experts, kept), plan.most)], encoder.embed)
    fitted = Fitted(mixture, tuple(e.depth for e in experts), tuple(e.digest for e in experts), encoder.id)
    metrics = {**asdict(card), "plan": asdict(plan), "losses": [round(x, 4) for x in learner.losses]}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    fitted.save(out, names, metrics=metrics, created=created)
    return card


def _readable(experts: Sequence[Expert], answers: Sequence[lessons.Answer]) -> Iterator[tuple[Text, ...]]:
    """Each answer as every member would write it; without those that some member cannot write."""
    for answer in answers:
        with suppress(Unencodable):
            yield tuple(text_of(experts, writer, answer) for writer in range(len(experts)))


def _loss(
    experts: Sequence[Expert],
    mixture: Mixture,
    batch: Sequence[tuple[Text, ...]],
    vectors: torch.Tensor,
    balance: float,
) -> torch.Tensor:
    """What a step learns from."""
    import torch

    losses, costs = [], []
    for writer in range(len(experts)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nll, rows = _nll(experts, mixture, [texts[writer] for texts in batch])
        losses.append(nll.mean())
        costs.append(_per_byte(nll.detach(), rows, [texts[writer] for texts in batch]))
    chosen = mixture.scores(vectors).exp()
    expected = (chosen * torch.stack(costs, -1)).sum(-1).mean()
    uneven = len(experts) * chosen.mean(0).square().sum()
    return torch.stack(losses).sum() + expected + balance * uneven


def _nll(
    experts: Sequence[Expert], mixture: Mixture, texts: Sequence[Text], active: Iterable[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each token of the answers, and the text it is of; (n,) both. All members are active
    unless told otherwise."""
    import torch

    heard = frozenset(range(len(experts)) if active is None else active)
    logits, labels, rows = next_logits(experts, mixture, texts, heard)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none"), rows


def _per_byte(nll: torch.Tensor, rows: torch.Tensor, texts: Sequence[Text]) -> torch.Tensor:
    """Each text's negative log-likelihood a byte."""
    total = nll.new_zeros(len(texts)).index_add_(0, rows, nll)
    return total / total.new_tensor([text.size for text in texts])


def evaluate(
    experts: Sequence[Expert],
    mixture: Mixture,
    kept: Sequence[tuple[Text, ...]],
    encode: Callable[[Sequence[str]], Any],
) -> Card:
    """The card of a mixture on the answers `kept`, in float32, one at a time."""
    import torch

    nothing = Mixture(
        {n: torch.zeros_like(x) if n.startswith("R.") else x for n, x in mixture.weights.items()},
        mixture.points,
    )
    members = range(len(experts))
    sums = torch.zeros(2, len(experts))
    tokens, likelier = torch.zeros(len(experts)), [0 for _ in members]
    costs = torch.zeros(len(kept), len(experts))
    with torch.no_grad():
        for row, texts in enumerate(kept):
            for writer in members:
                alone, _ = _nll(experts, nothing, [texts[writer]], {writer})
                mixed, rows = _nll(experts, mixture, [texts[writer]])
                sums[:, writer] += torch.stack([alone.sum(), mixed.sum()])
                tokens[writer] += len(mixed)
                likelier[writer] += bool(mixed.sum() < alone.sum())
                costs[row, writer] = _per_byte(mixed, rows, [texts[writer]])[0]
        vectors = torch.from_numpy(encode([texts[0].asked for texts in kept]))
        chosen = mixture.scores(vectors).argmax(-1)
    without, having = (tuple(round(x, 4) for x in row) for row in (sums / tokens).tolist())
    return Card(
        len(kept),
        without,
        having,
        tuple(likelier),
        round(float(costs.gather(1, chosen[:, None]).mean()), 4),
        round(float(costs.mean(0).min()), 4),
        round(float(costs.min(1).values.mean()), 4),
        tuple(round(float((chosen == m).float().mean()), 4) for m in members),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, print the card."""
    home, plan = Home.from_environ(), Plan()
    parser = argparse.ArgumentParser(
        prog="python -m engines.train_mot", description="Train a latent mixture of frozen models."
    )
    parser.add_argument(
        "--members", nargs="+", default=MEMBERS, help="weights ids or folders, in the order of the config"
    )
    parser.add_argument("--answers", type=Path, default=lessons.ANSWERS, help="table of graded answers")
    parser.add_argument("--out", type=Path, default=home.root / "mot", help="the artefact's folder")
    parser.add_argument("--steps", type=int, default=plan.steps, help=f"batches of {plan.batch} answers")
    parser.add_argument("--report", type=Path, help="JSON file for the card")
    asked = parser.parse_args(arguments)
    found = folders(asked.members)
    models = [found[name] for name in asked.members]
    began, plan = time.monotonic(), Plan(steps=asked.steps)
    names = [folder.name for folder in models]
    card = train([Expert.load(folder) for folder in models], names, asked.out, asked.answers, plan)
    report = {
        "members": names,
        "plan": asdict(plan),
        "seconds": round(time.monotonic() - began),
        **asdict(card),
    }
    lessons.tell(report, asked.report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
