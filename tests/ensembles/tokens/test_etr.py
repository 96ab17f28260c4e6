"""ETR without a real model: hand-overs on tiny models, and the loss against a whole model's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from engines.host import FusionSpec
from ensembles.tokens.etr import ETR, Conversation, fit, loss
from protocol.errors import ArtefactMismatch, SettingsError
from tests.contracts.fusion_checks import SHARED
from tests.engines.tiny import PROMPTS, WIDTH, TinyModel, tiny_host

PAIR = ("one", "two")
SEEDS = range(8)


def _experts(scale: float) -> torch.Tensor:
    return torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(7)) * scale


def _text(members: tuple[TinyModel, TinyModel], etr: ETR, tokens: int) -> tuple[str, list[str]]:
    """ETR as a loop of its own: every model reads everything anew, the expert what it has missed as one text. The text,
    and its writers, one a symbol."""
    ids = [list(PROMPTS[model.name]) for model in members]
    missed = [b"", b""]
    text, writers, writer, handed, alone = b"", [], 0, 0, 0
    while True:
        listens = writer == 0 or (etr.follow and alone and alone % etr.follow == 0)
        if listens and handed < etr.switches:
            ids[0] += members[0].encode(missed[0])
            missed[0] = b""
            row = members[0].row(ids[0])
            row[members[0].mute[0]] = -torch.inf
            assert etr.experts is not None
            if float(etr.experts[0] @ members[0].state(ids[0])) > float(row.max()) and writer == 0:
                writer, handed, alone = 1, handed + 1, 0
        ids[writer] += members[writer].encode(missed[writer])
        missed[writer] = b""
        row = members[writer].row(ids[writer])
        row[members[writer].mute[0]] = -torch.inf
        symbol = members[writer].emits[int(row.argmax())]
        if symbol is None:
            break
        text += symbol
        writers.append(members[writer].name)
        alone += 1
        missed = [x + symbol for x in missed]
        if len(writers) >= tokens:
            break
    return text.decode(), writers


@pytest.mark.parametrize(("scale", "follow"), [(1.0, 0), (1.5, 0), (1.5, 2), (1.5, 3)])
def test_texts_equal_a_plain_loop(tmp_path: Path, scale: float, follow: int) -> None:
    """The same greedy texts as far as both go: who writes what is told, and the expert goes on from the words there."""
    handed = 0
    for seed in SEEDS:
        etr = ETR(experts=_experts(scale), follow=follow)
        fusion = FusionSpec("meta", PAIR, (0.5, 0.5), etr, feedback="rejoin")
        tiny = tiny_host(tmp_path / str(seed), [fusion], seed=seed)
        text, writers = _text((TinyModel("one", seed), TinyModel("two", seed)), etr, 80)
        reply = tiny.send("meta", max_tokens=40).result()
        tiny.host.stop()
        assert reply.end is not None
        assert text.startswith(reply.text)
        assert reply.text == text or reply.end.reason == "length"
        assert len(reply.text) > 3 or reply.end.reason == "stop"
        told = [part.model for part in reply.end.spans]
        order = [w for n, w in enumerate(writers) if n == 0 or w != writers[n - 1]]
        assert order[: len(told)] == told
        assert sum(part.size for part in reply.end.spans) == len(reply.text)
        handed += "two" in told
        if "two" not in told:
            assert tiny.engines["two"].starts == 0
    assert handed > 0


def test_without_calls_it_is_the_meta_model(tmp_path: Path) -> None:
    """A bias of −∞, a weight of 0 and no switch each leave the meta model alone with its text."""
    eager = _experts(100.0)
    fusions = [
        FusionSpec("never", PAIR, (0.5, 0.5), ETR(experts=eager, bias=-math.inf), feedback="rejoin"),
        FusionSpec("unweighted", PAIR, (1.0, 0.0), ETR(experts=eager), feedback="rejoin"),
        FusionSpec("still", PAIR, (0.5, 0.5), ETR(experts=eager, switches=0), feedback="rejoin"),
        FusionSpec("eager", PAIR, (0.5, 0.5), ETR(experts=eager, bias=1e9), feedback="rejoin"),
    ]
    tiny = tiny_host(tmp_path, fusions)
    alone = tiny.send("one").result().text
    assert [tiny.send(name).result().text for name in ("never", "unweighted", "still")] == [alone] * 3
    assert tiny.engines["two"].starts == 0
    called, other = tiny.send("eager").result(), tiny.send("two").result()
    tiny.host.stop()
    assert called.end is not None
    assert [part.model for part in called.end.spans] == ["two"]
    assert other.text.startswith(called.text)  # the bound counts the meta model's tokens
    assert called.text != alone[: len(called.text)]


def test_switches_are_bounded() -> None:
    """However often the meta model would call, and whoever writes, the text changes hands `switches` times at most."""
    from tests.contracts.fusion_checks import Step, step

    experts = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    etr = ETR(experts=experts, bias=50.0, switches=3, follow=1)
    memory, writers = None, []
    for n in range(12):
        # Its state points to the one expert and to the other in turn.
        state = torch.tensor([[100.0 * (-1) ** n, 0.0]])
        full = step(SHARED, (0.5, 0.25, 0.25), seed=n)
        decision = etr.decide(Step(SHARED, full.weights, full.logits, True, {0: state}, memory))
        memory = decision.memory  # type: ignore[union-attr]
        writers.append(decision.author)  # type: ignore[union-attr]
    changes = sum(a != b for a, b in zip([0, *writers], writers, strict=False))
    assert changes == 3
    assert writers[:4] == [1, 2, 1, 1]


def test_the_loss_is_that_of_the_whole_model() -> None:
    """Cross-entropy over |V| + K tokens of a model whose head has K more rows: the same loss and gradient of E, and
    nothing else has a gradient."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(11, WIDTH, generator=generator)
    states = torch.randn(9, WIDTH, generator=generator)
    labels = torch.tensor([3, 11, 0, 12, 5, 5, 11, 10, 2])
    z = states @ head.T
    ordinary = labels.clamp_max(10)
    expert = torch.where(labels > 10, labels - 11, -1)
    conversation = Conversation(states, z.logsumexp(-1), z.gather(1, ordinary[:, None])[:, 0], expert)
    ours = torch.randn(2, WIDTH, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = loss(ours, [conversation])
    whole = torch.nn.functional.cross_entropy(states @ torch.cat([head, theirs]).T, labels)
    found.backward()  # type: ignore[no-untyped-call]
    whole.backward()  # type: ignore[no-untyped-call]
    assert float(found.detach()) == pytest.approx(float(whole.detach()), abs=1e-5)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert head.grad is None
    assert states.grad is None


def test_expert_tokens_learn_whose_question_it_is() -> None:
    """Where the first entry of the state tells, E calls there and nowhere else, beginning with the head's mean row."""
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(30, WIDTH, generator=generator)

    def conversation(called: bool) -> Conversation:
        states = torch.randn(1 if called else 5, WIDTH, generator=generator)
        states[0, 0] = 4.0 if called else -4.0
        z = states @ head.T
        expert = torch.full((len(states),), 0 if called else -1)
        return Conversation(states, z.logsumexp(-1), z.max(-1).values, expert)

    learn = [conversation(n % 3 == 0) for n in range(300)]
    start = head.mean(0)[None]
    experts, losses = fit(start, learn, rate=0.2, decay=0.0, epochs=20)
    assert losses[-1] < 0.6 * losses[0]
    right = 0
    for n in range(100):
        one = conversation(n % 2 == 0)
        called = float(one.states[0] @ experts[0]) > float((one.states[0] @ head.T).max())
        right += called == (n % 2 == 0)
    assert right > 85
    again, _ = fit(start, learn, rate=0.2, decay=0.0, epochs=20)
    assert torch.equal(experts, again)


def test_what_is_kept_is_what_is_loaded(tmp_path: Path) -> None:
    """Expert tokens survive the artefact; other members are refused."""
    before = ETR(experts=_experts(1.0))
    before.save(tmp_path, PAIR)
    after = ETR(follow=8).load(PAIR, {"experts": tmp_path})
    assert after.experts is not None
    assert before.experts is not None
    assert torch.equal(after.experts, before.experts)
    assert after.follow == 8
    with pytest.raises(ArtefactMismatch, match="one, two"):
        ETR().load(("two", "one"), {"experts": tmp_path})


def test_options_are_checked() -> None:
    """A bias that is no number, a negative bound, and no expert tokens where some are needed, are said."""
    from tests.contracts.fusion_checks import ask, step

    with pytest.raises(SettingsError, match="bias must be a number"):
        ETR(bias=math.nan)
    with pytest.raises(SettingsError, match="switches"):
        ETR(switches=-1)
    with pytest.raises(SettingsError, match="chorus teach"):
        ask(ETR(), step(SHARED, (0.5, 0.25, 0.25)))
