"""routerdc: only directions count, both masks, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers.policy import Utility
from routers.routerdc import RouterDc
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import realised, worded_table

pytestmark = pytest.mark.requires("torch")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_encoder(tmp_path_factory.mktemp("tiny")))


def test_it_learns_who_can(start: str) -> None:
    """Where one word tells which model can answer, held-out queries go to that model nearly always."""
    router = RouterDc(start=start, **QUICK).fit(worded_table(300))
    test = worded_table(200, seed=1)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2


def test_only_directions_count(start: str) -> None:
    """Model vectors are stored as directions; quality is (1 + cosine)/2 and ranks as the cosines do."""
    table = worded_table(60)
    router = RouterDc(start=start, epochs=1).fit(table)
    assert np.allclose(np.linalg.norm(router.encoder_.weight, axis=0), 1, atol=1e-5)
    cosine = router.encoder_(table.queries.texts)
    estimate = router.estimate(table.queries)
    assert np.allclose(estimate.quality, (1 + cosine) / 2)
    assert np.array_equal(Utility().choose(estimate), cosine.argmax(axis=1))


def test_the_released_mask_is_another_loss(start: str) -> None:
    """`faithful` trains with the released batch-wide factor: other weights, where some positives score 0."""
    table = worded_table(60)
    table = replace(table, score=np.where(np.arange(60)[:, None] % 2, 0.0, table.score))
    own, released = (RouterDc(start=start, epochs=1, faithful=mode).fit(table) for mode in (False, True))
    assert not np.allclose(own.encoder_.weight, released.encoder_.weight, atol=1e-4)
