"""Scans of a logits row, against torch's own."""

from __future__ import annotations

import math

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
        places = scan.top(row, k)
        assert len(set(places.tolist())) == min(k, n)
        assert torch.equal(row[places], row.topk(min(k, n)).values)


def test_equal_values_are_fine() -> None:
    """A row of equal values has some k largest, and minus infinity is a value."""
    assert len(set(scan.top(torch.zeros(70_000), 40).tolist())) == 40
    assert scan.log_sum_exp(torch.tensor([-torch.inf, 0.0])) == 0.0
    assert scan.log_sum_exp(torch.tensor([500.0, 500.0])) == pytest.approx(500 + math.log(2))
