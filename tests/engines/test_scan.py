"""Scans of a logits row, against torch's own."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from engines import scan


@pytest.mark.parametrize("n", [7, 255, 1000, 49_152, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scans_equal_torch(n: int, dtype: torch.dtype) -> None:
    """The k largest values, best first, and log Σ exp, whatever the length and type of the row."""
    row = (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 4).to(dtype)
    assert scan.log_sum_exp(row) == pytest.approx(float(row.double().logsumexp(-1)), abs=1e-5)
    for k in (1, 5, n + 3):
        places, values = scan.top(row, k)
        assert len(set(places.tolist())) == min(k, n)
        assert torch.equal(row[places], row.topk(min(k, n)).values)
        assert torch.equal(row[places].float(), values.float())


def test_equal_values_are_fine() -> None:
    """A row of equal values has some k largest, and minus infinity is a value."""
    assert len(set(scan.top(torch.zeros(70_000), 40)[0].tolist())) == 40
    assert scan.log_sum_exp(torch.tensor([-torch.inf, 0.0])) == 0.0
    assert scan.log_sum_exp(torch.tensor([500.0, 500.0])) == pytest.approx(500 + math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_size(dtype: torch.dtype) -> None:
    """Sums hold where exponentials leave float32, whatever the places; nothing sums to minus infinity."""
    for row in (
        [300.0, 299.0, -50.0],
        [-200.0, -201.0, -300.0],
        [88.5, 88.5, -torch.inf],
        [-torch.inf, -torch.inf],
    ):
        logits = torch.tensor(row, dtype=dtype)
        assert scan.log_sum_exp(logits) == pytest.approx(float(logits.double().logsumexp(-1)), rel=1e-6)
    logits = torch.tensor([1.0, 2.0, -torch.inf, 500.0], dtype=dtype)
    assert scan.log_sum_exp(logits, torch.tensor([0, 1])) == pytest.approx(
        math.log(math.e + math.e**2), abs=1e-5
    )
    assert scan.log_sum_exp(logits, torch.tensor([1, 3])) == 500
    assert scan.log_sum_exp(logits, torch.tensor([], dtype=torch.int64)) == -math.inf


@pytest.mark.parametrize("n", [3, 300, 70_001])
def test_kernels_say_what_torch_says(n: int) -> None:
    """Reading and projecting are the same from float32, from bfloat16, and by torch alone: rows of another type, or
    with gaps between their elements."""
    random = torch.Generator().manual_seed(n)
    row = (torch.randn(n, generator=random) * 4).bfloat16()
    row[1] = -torch.inf
    symbols = torch.tensor([0, -1, 2, 1])
    ids = torch.tensor([[0, 2], [1, -1], [1, 0], [-1, -1]])  # the last has none: -1 reads it
    symbol_of = torch.randint(0, 5, (n,), generator=random)
    spread = torch.stack([row, row], dim=-1)[:, 0]
    kinds = [row, row.float(), row.double(), spread]
    assert [scan._array(kind) is None for kind in kinds] == [False, False, True, True]
    expected = torch.tensor(
        [float(torch.logaddexp(row[0].float(), row[2].float())), -torch.inf, float(row[0]), -torch.inf]
    )
    whole = torch.zeros(5).index_add(0, symbol_of, row.float().softmax(-1))[:4]
    for kind in kinds:
        assert torch.allclose(scan.read(kind, ids, symbols), expected)
        assert torch.allclose(scan.read(kind, ids, symbols[:, None]), expected[:, None])
        mass = scan.log_sum_exp(kind)
        assert torch.allclose(scan.project(kind, symbol_of, mass, 4), whole, rtol=1e-4, atol=1e-7)
        assert scan.top(kind, 2)[0].tolist() == row.float().topk(2).indices.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_negative_ones(dtype: torch.dtype) -> None:
    """Groups without a positive number have a largest one too, zero and minus infinity included."""
    row = -torch.rand(10_000, generator=torch.Generator().manual_seed(1)).to(dtype) - 0.01
    row[300:900], row[5000], row[7000] = -torch.inf, -0.0, 1e-30
    assert torch.equal(row[scan.top(row, 6)[0]], row.topk(6).values)


def test_a_row_of_no_numbers_is_read_within_its_bounds() -> None:
    """What a broken model gives makes no access out of bounds: as many positions as wanted, all within the row."""
    row = torch.full((70_000,), torch.nan)
    assert all(0 <= place < 70_000 for place in scan.top(row, 40)[0].tolist())


def test_vllm_may_look_at_every_module() -> None:
    """What the kernels import has attributes that are what their names say: vLLM looks for `__dict__` when it loads."""
    assert not scan.log_sum_exp(torch.zeros(1))
    modules = [module for name, module in sys.modules.items() if name.startswith(("llvmlite", "numba"))]
    assert modules
    values = [value for module in modules for value in vars(module).values()]
    assert all(hasattr(vars(value), "get") for value in values if hasattr(value, "__dict__"))
