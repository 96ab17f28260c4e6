"""DeePEn on small vocabularies, against torch's own gradient and optimiser; on the real pair see
tests/engines/."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ensembles.tokens.base import Ask, Mixture, Step
from ensembles.tokens.deepen import METHOD, REACH, BoundDeePEn, DeePEn, search
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import SHARED, SmallAlphabet, SmallTables, ask, decide, step

FIFTY = SmallAlphabet((tuple(range(50)), tuple(reversed(range(10, 60)))), 61)
"""Two members of fifty tokens, forty of them shared."""
TABLES = SmallTables(FIFTY, 12)


def _bound(**options: object) -> BoundDeePEn:
    return DeePEn(**{"anchors": 0, "rows": 99, **options}).bind(TABLES)  # type: ignore[arg-type]


def _oracle(z_main: Tensor, table: Tensor, target: Tensor, eta: float, decay: float) -> list[Tensor]:
    """The authors' loop as they wrote it: autograd, AdamW, a cosine schedule. The logits after each step."""
    z = z_main.clone().requires_grad_()
    adam = torch.optim.AdamW([z], lr=eta, betas=(0.9, 0.999), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=10, eta_min=eta / 4)
    path = []
    for _ in range(5):
        adam.zero_grad()
        image = z.softmax(-1) @ table
        loss = (target * (target.log() - image.log())).mean()
        loss.backward()
        adam.step()
        schedule.step()
        path.append(z.detach().clone())
    return path


def _problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    bound, full = _bound(), step(FIFTY, (0.5, 0.5), seed)
    tables = [bound.relative(m, torch.tensor(FIFTY.maps[m])) for m in range(2)]
    p = [full.logits[m].double().softmax(-1) for m in range(2)]
    return full.logits[0].double(), tables[0], (p[0] @ tables[0] + p[1] @ tables[1]) / 2


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_equals_autograd_and_adamw(seed: int, decay: float) -> None:
    """Gradient, moments, decay and schedule written out give the authors' logits, within 1e-6."""
    z, table, target = _problem(seed)
    found = search(z, table, target, DeePEn(eta=0.15, decay=decay))
    assert torch.allclose(found, _oracle(z, table, target, 0.15, decay)[-1], atol=1e-6)


def test_the_whole_decision_equals_the_oracle() -> None:
    """From logits to argmax, with rows in order of likelihood: the q is the oracle's softmax."""
    full = step(FIFTY, (0.5, 0.5), 1)
    z, table, target = _problem(1)
    decision = _bound().decide(full)
    assert isinstance(decision, Mixture)
    assert decision.symbols is not None
    expected = _oracle(z, table, target, 0.15, 0.0)[-1].softmax(-1)
    assert torch.allclose(decision.q.double(), expected[decision.symbols], atol=1e-6)


def test_rows_of_the_relative_table_are_distributions() -> None:
    """Every row of T sums to 1 and a token is most like itself."""
    table = _bound().relative(0, torch.arange(10, 50))
    assert torch.allclose(table.sum(-1), torch.ones(40, dtype=torch.float64))
    assert torch.equal(table.argmax(-1), torch.arange(40))


def test_the_loss_falls() -> None:
    """Every step brings the image of z nearer to the target."""
    z, table, target = _problem(2)

    def loss(z: Tensor) -> float:
        return float((target * (target.log() - (z.softmax(-1) @ table).log())).mean())

    losses = [loss(z), *(loss(one) for one in _oracle(z, table, target, 0.15, 0.0))]
    assert losses == sorted(losses, reverse=True)
    assert loss(search(z, table, target, DeePEn())) == pytest.approx(losses[-1], rel=1e-6)


def test_nothing_moves_further_than_the_reach() -> None:
    """The bound behind the short cut holds for any gradients."""
    for seed in range(5):
        z, table, target = _problem(seed)
        moved = (search(z, table, target, DeePEn(eta=0.3)) - z).abs().max()
        assert float(moved) <= REACH * 0.3


def test_the_short_cut_changes_no_decision() -> None:
    """A greedy step has the same argmax, whether the helpers were asked or not, and often they are not."""
    saved = 0
    for seed in range(100):
        full = step(FIFTY, (0.4, 0.6), seed)
        short = Step(FIFTY, full.weights, full.logits, greedy=True)
        fusion = DeePEn(anchors=0, rows=99, eta=0.1)
        assert int(decide(fusion, short).argmax()) == int(decide(fusion, full).argmax())
        saved += isinstance(
            _bound(eta=0.1).decide(Step(FIFTY, full.weights, {0: full.logits[0]}, greedy=True)), Mixture
        )
    assert 10 < saved < 100


def test_degenerate_cases_are_the_main_model() -> None:
    """η = 0, all weight on main, and copies of one model give main's own distribution."""
    full = step(FIFTY, (0.5, 0.5))
    main = FIFTY.project(0, full.logits[0])
    assert torch.allclose(decide(DeePEn(eta=0.0), full), main, atol=1e-6)
    assert torch.allclose(decide(DeePEn(), Step(FIFTY, (1.0, 0.0), full.logits)), main, atol=1e-6)
    one = step(SHARED, (1.0,)).logits[0]
    copies = Step(SHARED, (0.5, 0.5), {0: one, 1: one})
    assert torch.allclose(decide(DeePEn(), copies), SHARED.project(0, one), atol=1e-6)


def test_rounding_moves_no_logit() -> None:
    """Copies of one model whose logits differ as they do in float32 from other batches are not moved apart from it; a
    helper that differs by more moves them."""
    z = step(SHARED, (1.0,)).logits[0]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    main = SHARED.project(0, z)
    for size, moved in ((1e-5, False), (1e-1, True)):
        copies = Step(SHARED, (0.5, 0.5), {0: z, 1: z + size * noise})
        assert torch.allclose(decide(DeePEn(), copies), main, atol=1e-6) is not moved


def test_an_end_is_the_main_model_s() -> None:
    """Where main would end, it ends, and nobody is asked."""
    logits = torch.zeros(4)
    logits[3] = 5.0
    decision = ask(DeePEn(), Step(SHARED, (0.5, 0.5), {0: logits}))
    assert int(decision.q.argmax()) == SHARED.eos


def test_helpers_are_asked_second() -> None:
    """It asks for main alone, then for the helpers that have a weight."""
    full = step(FIFTY, (0.5, 0.5))
    assert _bound().decide(Step(FIFTY, full.weights, {})) == Ask(frozenset({0}))
    assert _bound().decide(Step(FIFTY, full.weights, {0: full.logits[0]})) == Ask(frozenset({1}))


@pytest.mark.parametrize("options", [{"eta": -1}, {"rows": 1}, {"anchors": 1.5}, {"reduction": "max"}])
def test_bad_options_stop_the_start(options: dict[str, object]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        DeePEn(**options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("deepen", "fusion") is METHOD
