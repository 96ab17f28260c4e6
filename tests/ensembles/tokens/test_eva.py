"""EVA on small vocabularies and on the real embedding tables, without an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.byte_vocab import ByteVocab
from engines.embedding_rows import EmbeddingRows
from ensembles.tokens.base import Step
from ensembles.tokens.eva import EVA, METHOD, BoundEVA, Projection, project, survivors, vecmap
from protocol.errors import SettingsError
from protocol.methods import find_method
from tests.contracts.fusion_checks import SmallAlphabet, SmallTables, decide, step

FIFTY = SmallAlphabet((tuple(range(61)), tuple(reversed(range(10, 61)))), 61)
"""A pivot with all symbols and a helper with most of them; embeddings are one table, turned."""
TABLES = SmallTables(FIFTY, 8)


def _numpy_vecmap(x: Any, z: Any, src: Any, trg: Any) -> tuple[Any, Any]:
    """VecMap's supervised steps, in the order of its program, for two spaces of one width."""
    for table in (x, z):
        table /= np.sqrt((table**2).sum(1))[:, None]
        table -= table.mean(0)
        table /= np.sqrt((table**2).sum(1))[:, None]

    def whitening(m: Any) -> Any:
        _, s, vt = np.linalg.svd(m, full_matrices=False)
        return vt.T.dot(np.diag(1 / s)).dot(vt)

    wx1, wz1 = whitening(x[src]), whitening(z[trg])
    x, z = x.dot(wx1), z.dot(wz1)
    wx2, s, wz2_t = np.linalg.svd(x[src].T.dot(z[trg]))
    wz2 = wz2_t.T
    x, z = x.dot(wx2), z.dot(wz2)
    x, z = x * s**0.5, z * s**0.5
    x = x.dot(wx2.T.dot(np.linalg.inv(wx1)).dot(wx2))
    z = z.dot(wz2.T.dot(np.linalg.inv(wz1)).dot(wz2))
    return tuple(table / np.sqrt((table**2).sum(1))[:, None] for table in (x, z))  # type: ignore[return-value]


def test_the_mapping_equals_vecmap() -> None:
    """On random tables of one width, all cosines agree with the numpy program."""
    generator = np.random.default_rng(3)
    x, z = generator.normal(size=(80, 12)), generator.normal(size=(90, 12))
    src, trg = np.arange(0, 50), np.arange(20, 70)
    ours = vecmap(torch.tensor(x), torch.tensor(z), torch.tensor(src), torch.tensor(trg))
    theirs = _numpy_vecmap(x.copy(), z.copy(), src, trg)
    assert np.allclose((ours[0] @ ours[1].T).numpy(), theirs[0] @ theirs[1].T, atol=1e-5)


def test_a_turned_space_is_turned_back() -> None:
    """A space seen from another side, and one with an extra dimension of nothing, is found again."""
    table = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q[:10]
    words = torch.arange(100)
    x, z = vecmap(table, table @ turn, words, words)
    assert x.shape == z.shape == (200, 10)
    assert torch.equal((x @ z.T).argmax(-1), torch.arange(200))


def test_similarities_by_hand() -> None:
    """Two tokens in the plane: 2 cos less the best cosine that the pivot token has with anybody."""
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    best, score = project(x, z, 0.1)
    assert best[0, 0] == 0
    assert score[0].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert best[1, 0] == 1
    assert score[1].tolist() == pytest.approx([0.8, 0.2, 0.0], abs=1e-6)


def test_flat_rows_are_emptied() -> None:
    """A token equally like more than five others means nothing."""
    x = torch.tensor([[1.0, 0.0]])
    z = torch.tensor([[1.0, 0.0]] * 6)
    assert bool((project(x, z, 0.1)[1] == 0).all())
    assert bool((project(x, z[:5], 0.1)[1] == 1).all())


def test_the_filter() -> None:
    """Two members survive when each one's first is among the other's first n; one who stands alone goes."""
    q = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.5, 0.4, 0.1, 0.0], [0.0, 0.1, 0.1, 0.8]])
    assert survivors(q, 2).tolist() == [1.0, 1.0, 0.0]
    assert survivors(q[[0, 2]], 2).tolist() == [1.0, 1.0]  # nobody survives: all are kept
    assert survivors(q, 0).tolist() == [1.0, 1.0, 1.0]
    one_way = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4]])
    assert survivors(one_way, 2).tolist() == [0.0, 1.0]


def test_a_helper_is_projected_and_its_end_is_the_end() -> None:
    """Worked by hand with a given S: q = ½ p₁ + ½ Sᵀ p₂, scaled to 1; the raw similarities stay."""
    alphabet = SmallAlphabet(((0, 1, 4), (2, 3, 4)), 5)
    rows = Projection(
        torch.tensor([2, 3, 4]),
        torch.tensor([[0, 1], [1, 0], [4, 4]]),
        torch.tensor([[0.8, 0.4], [0.5, 0.0], [1.0, 0.0]]),
    )
    logits = {0: torch.tensor([0.5, 0.3, 0.2]).log(), 1: torch.tensor([0.6, 0.3, 0.1]).log()}
    q = decide(BoundEVA(EVA(), {1: rows}), Step(alphabet, (0.5, 0.5), logits))
    raw = [0.5 + 0.48, 0.3 + 0.24 + 0.15, 0.0, 0.0, 0.2 + 0.1]
    assert q.tolist() == pytest.approx([v / sum(raw) for v in raw])


def test_a_projection_is_kept_in_a_file(tmp_path: Path) -> None:
    """The second start reads what the first one fitted; another team's file is refused."""
    kept = EVA(projection=str(tmp_path / "deep" / "s.safetensors"))
    full = step(FIFTY, (0.5, 0.5))
    first = decide(kept, full)
    assert torch.equal(decide(kept, full), first)
    assert torch.equal(decide(EVA(), full), first)
    with pytest.raises(SettingsError, match="other vocabularies"):
        kept.bind(SmallTables(SmallAlphabet((tuple(range(9)), tuple(range(3, 9))), 9), 3))


@pytest.mark.parametrize("options", [{"pivot": -1}, {"top_k": 0}, {"drop": 1.5}, {"threshold": "low"}])
def test_bad_options_stop_the_start(options: dict[str, object]) -> None:
    """Options out of range are refused with their name."""
    with pytest.raises(SettingsError, match=next(iter(options))):
        EVA(**options)  # type: ignore[arg-type]


def test_it_is_registered() -> None:
    """The registry finds the method by its id."""
    assert find_method("eva", "fusion") is METHOD


@pytest.mark.requires("weights:smollm2-135m-instruct")
def test_a_model_projected_on_itself_keeps_its_tokens(weights: Callable[[str], Path]) -> None:
    """On 4,000 tokens of SmolLM2, all of them in the dictionary, S has its largest entry on the diagonal for
    more than 95 %."""
    table = EmbeddingRows(weights("smollm2-135m-instruct")).rows("output")
    some = table[torch.randperm(table.shape[0], generator=torch.Generator().manual_seed(0))[:4000]].float()
    words = torch.arange(4000)
    best, _ = project(*vecmap(some, some, words, words), 0.1)
    assert float((best[:, 0] == words).float().mean()) > 0.95


@pytest.mark.requires("weights:smollm2-135m-instruct", "weights:gemma3-270m")
def test_hidden_tokens_are_found_on_the_real_pair(weights: Callable[[str], Path]) -> None:
    """A fifth of 20,000 tokens common to both models is hidden from the dictionary; more than nine tenths of
    1,000 of them are still nearest to their twin among 5,000 candidates; with a shuffled dictionary, none is."""
    folders = [weights(id) for id in ("gemma3-270m", "smollm2-135m-instruct")]
    vocabs = [ByteVocab.load(folder) for folder in folders]
    both = [text for text in vocabs[1].ids if text in vocabs[0].ids]
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(0)).tolist()
    some = [both[i] for i in order[:20_000]]
    gemma, smol = (
        EmbeddingRows(folder).rows("output")[torch.tensor([vocab.ids[text][0] for text in some])].float()
        for folder, vocab in zip(folders, vocabs, strict=True)
    )
    known = torch.arange(16_000)
    x, z = vecmap(gemma, smol, known, known)
    best, _ = project(x[16_000:17_000], z[15_000:20_000], -9.0)
    found = float((best[:, 0] == torch.arange(1000, 2000)).float().mean())
    assert found > 0.9
