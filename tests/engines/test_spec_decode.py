"""Drafting and verifying in the host's loop, with engines that are tables: every text can be computed by
hand."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from engines.host import FusionSpec
from ensembles.tokens.base import Fusion
from ensembles.tokens.cp_delta import CPDelta
from ensembles.tokens.gac import GaC
from ensembles.tokens.spec_ensemble import SpecEnsemble
from tests.engines.table_engine import LETTERS, PAIRS, answers, host_of

ONE = {"x": (LETTERS, 1), "y": (LETTERS, 2), "z": (LETTERS, 3)}
"""Three members of one vocabulary."""
TWO = {"x": (LETTERS, 1), "y": (PAIRS, 2), "z": (PAIRS, 3)}
"""Members whose vocabularies differ: a symbol may be two tokens elsewhere."""
PROMPTS = [[1 + i % 3, 1 + i // 3 % 3, 1 + i // 9 % 3] for i in range(27)]


@pytest.mark.parametrize("members", [ONE, TWO], ids=["one vocabulary", "two vocabularies"])
@pytest.mark.parametrize("drafts", [1, (3, 1, 2), (1, 4, 2)])
@pytest.mark.parametrize("rule", ["gac", "cp-delta"])
def test_greedy_texts_are_those_of_the_plain_loop(
    tmp_path: Path, members: dict[str, tuple[dict[str, int], int]], drafts: int | tuple[int, ...], rule: str
) -> None:
    """The same text for every prompt, whoever drafts and however much, for two and for three members."""
    plain: Fusion = GaC() if rule == "gac" else CPDelta()
    few = drafts if isinstance(drafts, int) else drafts[:2]
    fusions = [
        FusionSpec("plain2", ("x", "y"), (0.6, 0.4), plain),
        FusionSpec("spec2", ("x", "y"), (0.6, 0.4), SpecEnsemble(rule, few)),
        FusionSpec("plain3", ("x", "y", "z"), (0.4, 0.3, 0.3), plain),
        FusionSpec("spec3", ("x", "y", "z"), (0.4, 0.3, 0.3), SpecEnsemble(rule, drafts)),
    ]
    host, engines = host_of(tmp_path, members, fusions)
    for n in (2, 3):
        texts = answers(host, f"plain{n}", PROMPTS)
        assert answers(host, f"spec{n}", PROMPTS) == texts
        assert len(set(texts)) > 5
    tally = host.tallies()["spec2"]
    assert 0 < tally.accepted < tally.verified
    host.stop()
    assert not any(engine.live for engine in engines.values())


def test_answers_end_where_they_may(tmp_path: Path) -> None:
    """Stop strings, a bound of tokens and the context's end cut a drafted text where they cut a plain one."""
    fusions = [
        FusionSpec("plain", ("x", "y"), (0.5, 0.5), GaC()),
        FusionSpec("spec", ("x", "y"), (0.5, 0.5), SpecEnsemble(drafts=(4, 3))),
    ]
    host, _ = host_of(tmp_path, TWO, fusions)
    for sampling in ({"stops": (b"bc",)}, {"max_tokens": 5}, {"max_tokens": 1}, {"max_tokens": None}):
        assert answers(host, "spec", PROMPTS, **sampling) == answers(host, "plain", PROMPTS, **sampling)
    host.stop()


def test_log_probabilities_are_the_fused_ones(tmp_path: Path) -> None:
    """Asked for log-probabilities, a drafted answer is still the plain one."""
    fusions = [
        FusionSpec("plain", ("x", "y"), (0.5, 0.5), GaC()),
        FusionSpec("spec", ("x", "y"), (0.5, 0.5), SpecEnsemble(drafts=3)),
    ]
    host, _ = host_of(tmp_path, ONE, fusions)
    assert answers(host, "spec", PROMPTS, top_logprobs=2) == answers(host, "plain", PROMPTS, top_logprobs=2)
    host.stop()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampled_texts_have_the_fused_distribution(tmp_path: Path, top_p: float) -> None:
    """χ² of 1,500 drawn texts of up to three letters against their exact probabilities."""
    fusion = FusionSpec("spec", ("x", "y"), (0.6, 0.4), SpecEnsemble(drafts=(2, 1)))
    host, engines = host_of(tmp_path, ONE, [fusion])
    prompt, temperature, count = [1, 2, 3], 0.8, 1500
    drawn = Counter(
        answers(host, "spec", [prompt] * count, temperature=temperature, top_p=top_p, max_tokens=3)
    )
    host.stop()

    def likelihood(ids: list[int], token: int) -> float:
        rows = (engines["x"].logits(ids).softmax(-1), engines["y"].logits(ids).softmax(-1))
        p = ((0.6 * rows[0] + 0.4 * rows[1]).log() / temperature).softmax(-1)
        order = p.argsort(descending=True).tolist()
        kept = [i for n, i in enumerate(order) if float(p[order[:n]].sum()) < top_p]
        return float(p[token] / p[kept].sum()) if token in kept else 0.0

    names = ".abc"
    expected: dict[str, float] = {}
    for n in range(4):
        for letters in itertools.product((1, 2, 3), repeat=n):
            ids, probability = list(prompt), 1.0
            for token in letters:
                probability *= likelihood(ids, token)
                ids.append(token)
            text = "".join(names[i] for i in letters)
            expected[text if n == 3 else f"{text}."] = probability * (1 if n == 3 else likelihood(ids, 0))
    assert sum(expected.values()) == pytest.approx(1)
    assert all(expected[text] > 0 for text in drawn)
    often = [text for text, p in expected.items() if p * count >= 5]
    rest = count * sum(p for text, p in expected.items() if text not in often)
    chi2 = sum((drawn[text] - expected[text] * count) ** 2 / (expected[text] * count) for text in often)
    if rest >= 5:
        chi2 += (count - sum(drawn[text] for text in often) - rest) ** 2 / rest
    # Mean n - 1, variance 2 (n - 1): four deviations; seeds are fixed, so it passes always or never.
    free = len(often) - 1 + (rest >= 5)
    assert free >= 5
    assert chi2 < free + 4 * (2 * free) ** 0.5


def test_copies_accept_every_draft(tmp_path: Path) -> None:
    """Two members that are one model: no draft is replaced, and a symbol costs about one forward, not
    two."""
    fusion = FusionSpec("spec", ("x", "x"), (0.5, 0.5), SpecEnsemble(drafts=2))
    host, _ = host_of(tmp_path, {"x": (LETTERS, 1)}, [fusion])
    answers(host, "spec", PROMPTS)
    answers(host, "spec", PROMPTS, temperature=1.0)
    tally = host.tallies()["spec"]
    assert tally.accepted == tally.verified > 100
    assert tally.forwards < 1.5 * tally.written
    host.stop()


def test_acceptance_is_at_least_the_weight(tmp_path: Path) -> None:
    """A drafter with weight w has E[accept] = 1 − TV(q, r) ≥ w, since r ≥ w q."""
    fusion = FusionSpec("spec", ("x", "y"), (0.7, 0.3), SpecEnsemble(drafts=(2, 1)))
    host, _ = host_of(tmp_path, ONE, [fusion])
    answers(host, "spec", PROMPTS * 5, temperature=1.0)
    tally = host.tallies()["spec"]
    assert tally.accepted / tally.verified > 0.3
    host.stop()


def test_a_cancelled_draft_frees_its_engines(tmp_path: Path) -> None:
    """A request that is cancelled while its members draft leaves nothing behind."""
    fusion = FusionSpec("spec", ("x", "y"), (0.5, 0.5), SpecEnsemble(drafts=3))
    host, engines = host_of(tmp_path, TWO, [fusion])
    answers(host, "spec", PROMPTS, temperature=1.0, max_tokens=3)
    for n in range(len(PROMPTS)):
        host.cancel(f"spec-{n}")
    answers(host, "spec", PROMPTS[:1])
    host.stop()
    assert not any(engine.live for engine in engines.values())


def test_the_table_is_no_constant() -> None:
    """The tables' members disagree: else nothing above could fail."""
    from engines.engine import EngineSpec
    from tests.engines.table_engine import TableEngine

    rows = [TableEngine(EngineSpec("x", Path()), 4, seed).logits([1, 2, 3]) for seed in (1, 2)]
    assert not torch.equal(*rows)
