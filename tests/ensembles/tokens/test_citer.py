"""CITER without a real model: labels, router, training, and whole texts on tiny models."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from engines.host import FusionSpec
from ensembles.tokens.citer import CITER, Point, TokenRouter, fit, label
from protocol.errors import ArtefactMismatch, SettingsError
from tests.engines.tiny import PROMPTS, WIDTH, TinyModel, tiny_host
from tests.ensembles.tokens.learnt import token_router

PAIR = ("one", "two")
SEEDS = range(6)


def test_labels_by_hand() -> None:
    """The small model is right; only the large one is; both are wrong, and the rollout decides. Only then is it
    made."""

    def never() -> bool:
        raise AssertionError("no rollout is needed")

    # The text goes on with "and so": the small model's next token is " an", the large one's " and".
    target = (b" an", b" and")
    assert label(Point(target, b" an", b" or"), never)
    assert label(Point(target, b" an", b" and"), never)
    assert not label(Point(target, b" a", b" and"), never)
    assert label(Point(target, b" a", b" an"), lambda: True)
    assert not label(Point(target, b" a", b" an"), lambda: False)
    # The text ends here.
    assert label(Point((b"", b""), b"", b"."), never)
    assert not label(Point((b"", b""), b".", b""), never)


def test_the_router_is_the_trained_network_at_rest() -> None:
    """What is served equals torch's own modules in eval mode, within 1e-5."""
    router = token_router(WIDTH)
    t = router.tensors
    network = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.BatchNorm1d(2 * WIDTH), torch.nn.ReLU(), torch.nn.Dropout(0.1),
        torch.nn.Linear(2 * WIDTH, WIDTH), torch.nn.Dropout(0.1), torch.nn.Linear(WIDTH, 1),
    )  # fmt: skip
    first, norm, second, last = (network[i] for i in (0, 1, 4, 6))
    network.load_state_dict(
        {
            "0.weight": t["first.weight"], "0.bias": t["first.bias"], "1.weight": t["norm.weight"],
            "1.bias": t["norm.bias"], "1.running_mean": t["norm.mean"], "1.running_var": t["norm.var"],
            "1.num_batches_tracked": torch.tensor(1), "4.weight": t["second.weight"], "4.bias": t["second.bias"],
            "6.weight": t["last.weight"], "6.bias": t["last.bias"],
        }
    )  # fmt: skip
    assert {type(x).__name__ for x in (first, norm, second, last)} == {"Linear", "BatchNorm1d"}
    states = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(router.logit(states), network.eval()(states)[:, 0], atol=1e-5)
        assert not torch.allclose(router.logit(states), network.train()(states)[:, 0], atol=1e-2)


def _states(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States, and labels that depend on two of their entries."""
    states = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return states, states[:, 0] * states[:, 1] > 0


def test_training_finds_what_the_state_tells() -> None:
    """Of a rule that is not linear the network learns most; on new states the true ones score higher."""
    from engines.teaching.share import area

    router, losses = fit(*_states(800, 0), rate=5e-3, epochs=40)
    assert min(losses) < losses[0]
    states, labels = _states(500, 1)
    assert area(router.logit(states).double().numpy(), labels.numpy()) > 0.9


def test_training_stops_when_it_no_longer_helps() -> None:
    """Labels that nothing tells: it ends long before the last epoch, and keeps the best network seen."""
    states, _ = _states(200, 0)
    labels = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(2)) > 0
    _, losses = fit(states, labels, rate=3e-3, epochs=500, patience=5)
    assert len(losses) < 300
    assert len(losses) - losses.index(min(losses)) == 6
    again, _ = fit(states, labels, rate=3e-3, epochs=500, patience=5)
    first, _ = fit(states, labels, rate=3e-3, epochs=500, patience=5)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)


def _text(
    members: tuple[TinyModel, TinyModel], router: TokenRouter, tau: float, tokens: int
) -> tuple[str, int]:
    """CITER as a loop of its own: every model reads everything anew at every step. The text, and the calls."""
    ids = [list(PROMPTS[model.name]) for model in members]
    text, calls, spent = b"", 0, 0
    while spent < tokens:
        score = float(router.logit(members[0].state(ids[0])).sigmoid())
        called = tau == 1 or (tau > 0 and score < tau)
        calls += called
        model = members[called]
        row = model.row(ids[called])
        row[model.mute[0]] = -torch.inf
        symbol = model.emits[int(row.argmax())]
        if symbol is None:
            break
        own = members[0].encode(symbol)[: tokens - spent]  # the bound counts the small model's tokens
        symbol = b"".join(members[0].emits[i] or b"" for i in own)
        text += symbol
        for own, one in zip(ids, members, strict=True):
            own += one.encode(symbol)
        spent = len(ids[0]) - len(PROMPTS["one"])
    return text.decode(), calls


@pytest.mark.parametrize("tau", [0, 0.3, 0.5, 0.8, 1])
def test_texts_equal_a_plain_loop(tmp_path: Path, tau: float) -> None:
    """The same greedy texts, whoever is called when; every byte is signed, and what the large model missed it reads
    in one forward."""
    router, texts = token_router(WIDTH), set()
    for seed in SEEDS:
        fusion = FusionSpec("routed", PAIR, (0.5, 0.5), CITER(tau=tau, router=router))
        tiny = tiny_host(tmp_path / str(seed), [fusion], seed=seed)
        members = (TinyModel("one", seed), TinyModel("two", seed))
        text, calls = _text(members, router, tau, 60)
        reply = tiny.send("routed").result()
        tiny.host.stop()
        assert reply.end is not None
        assert reply.text == text
        assert sum(part.size for part in reply.end.spans) == len(text.encode())
        assert {part.model for part in reply.end.spans} <= {"one", "two"}
        assert all(a.model != b.model for a, b in itertools.pairwise(reply.end.spans))
        if tau in (0, 1):
            assert {part.model for part in reply.end.spans} == {PAIR[tau]}  # type: ignore[index]
        if tau < 1:
            assert tiny.engines["two"].forwards >= calls
            assert (tiny.engines["two"].starts > 0) == (calls > 0)
        texts.add(text)
    assert len(texts) == len(SEEDS)


def test_the_share_of_calls_grows_with_tau() -> None:
    """On the same texts a larger τ calls at every place where a smaller one does."""
    router = token_router(WIDTH)
    states = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(3))
    called = [
        {n for n in range(300) if not CITER(tau=tau, router=router)._suffices(states[n])}
        for tau in (0, 0.2, 0.5, 0.9, 1)
    ]
    assert all(less <= more for less, more in itertools.pairwise(called))
    assert [len(calls) for calls in (called[0], called[-1])] == [0, 300]
    assert len(called[1]) < len(called[3])


def test_a_member_without_weight_does_not_speak(tmp_path: Path) -> None:
    """All weight on the small model: the large one is never asked, even at τ = 1."""
    fusion = FusionSpec("routed", PAIR, (1.0, 0.0), CITER(tau=1, router=token_router(WIDTH)))
    tiny = tiny_host(tmp_path, [fusion])
    alone, routed = tiny.send("one").result(), tiny.send("routed").result()
    tiny.host.stop()
    assert routed.text == alone.text
    assert tiny.engines["two"].starts == 0


def test_what_is_kept_is_what_is_loaded(tmp_path: Path) -> None:
    """The router survives the artefact; matrices are kept in half precision. Another small model is refused."""
    before = CITER(router=token_router(WIDTH))
    before.save(tmp_path, ("small", "large"))
    after = CITER().load(("small", "any"), {"router": tmp_path})
    states = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(4))
    assert before.router is not None
    assert after.router is not None
    assert torch.allclose(before.router.logit(states), after.router.logit(states), atol=0.05)
    with pytest.raises(ArtefactMismatch, match="states of small"):
        CITER().load(("large", "small"), {"router": tmp_path})


def test_options_are_checked() -> None:
    """τ outside [0, 1], and no router where one is needed, are said."""
    with pytest.raises(SettingsError, match="tau must be between 0 and 1"):
        CITER(tau=1.5)
    with pytest.raises(SettingsError, match="chorus teach"):
        CITER(tau=0.5)._suffices(torch.zeros(WIDTH))
