"""Every span method against the same method as a plain transformers loop, on the real pair in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import FOLDERS, OVERHEARD, PAIR, PROMPTS, SMOL

if TYPE_CHECKING:
    from tests.engines.conftest import Asker
    from tests.engines.plain_loop import PlainModel

pytestmark = pytest.mark.models

TOKENS = 8


@pytest.fixture(scope="module")
def plain(weights: Callable[[str], Path]) -> list[PlainModel]:
    """The pair in transformers."""
    from tests.engines.plain_loop import PlainModel

    return [PlainModel(weights(FOLDERS[name])) for name in PAIR]


@pytest.mark.parametrize("kind", ["cool", "sweet", "em", "hub", "mcts"])
def test_copies_of_a_model_write_its_text(ask: Asker, kind: str) -> None:
    """Two members that are one model write its own greedy answer, byte for byte, and judge nothing."""
    for question in PROMPTS:
        reply, alone = ask(f"{kind}-twice", question), ask(SMOL, question)
        assert reply.text == alone.text
        assert reply.end is not None
        assert alone.end is not None
        assert reply.end.reason == alone.end.reason


@pytest.mark.parametrize(
    ("kind", "count", "tokens"), [("cool", 2, TOKENS), ("sweet", 2, TOKENS), ("em", 3, 14)]
)
def test_spans_equal_a_plain_loop(
    ask: Asker, plain: list[PlainModel], kind: str, count: int, tokens: int
) -> None:
    """Greedy texts are the same up to where rounding could decide, and some text is neither member's."""
    from tests.engines.plain_spans import PlainSpans, aligned_cut, words_cut

    questions = PROMPTS[:count]
    ours = ask.all(*((kind, question) for question in questions), max_tokens=tokens)
    singles = [ask.all(*((name, question) for question in questions), max_tokens=tokens) for name in PAIR]
    compared = 0
    for question, reply in zip(questions, ours, strict=True):
        assert reply.end is not None, reply.failure
        loop = PlainSpans(plain, ask.prompt_ids(kind, question))
        rounds = len(reply.end.spans)
        if kind == "cool":
            loop.by_perplexity(aligned_cut(plain), 32, rounds)
        elif kind == "sweet":
            loop.by_perplexity(words_cut(2), 32, rounds)
        else:
            loop.by_votes(6, 1.0, rounds)
        wanted = loop.text if loop.sure is None else loop.text[: loop.sure]
        got = reply.text.encode()
        assert got[: len(wanted)] == wanted[: len(got)], question
        compared += min(len(got), len(wanted))
    assert compared > 20
    assert any(reply.text not in (a.text, b.text) for reply, a, b in zip(ours, *singles, strict=True))


def test_scores_equal_plain_transformers(ask: Asker, plain: list[PlainModel]) -> None:
    """What each member says of each span of an answer, its own and the others', is what transformers says: mean
    negative log-likelihoods differ by less than 2e-4 nats."""
    from tests.engines.plain_spans import PlainSpans, aligned_cut

    OVERHEARD.tables.clear()
    reply = ask("overheard", PROMPTS[1], max_tokens=TOKENS)
    assert reply.end is not None, reply.failure
    loop = PlainSpans(plain, ask.prompt_ids("cool", PROMPTS[1]))
    loop.by_perplexity(aligned_cut(plain), 32, len(reply.end.spans))
    assert loop.sure is None, "choose a question that rounding does not decide"
    assert len(OVERHEARD.tables) == len(loop.tables) > 1
    worst = max(
        abs(score.nll - math.log(perplexity))
        for ours, theirs in zip(OVERHEARD.tables, loop.tables, strict=True)
        for row, values in zip(ours, theirs.tolist(), strict=True)
        for score, perplexity in zip(row, values, strict=True)
    )
    print(f"largest difference of mean negative log-likelihoods: {worst:.1e} nats")
    assert worst < 2e-4


def test_aligned_segments_end_between_tokens_of_both(ask: Asker) -> None:
    """Each of cool-fusion's segments ends where both tokenizers begin a new token."""
    for question in PROMPTS[:3]:
        reply = ask("cool", question, max_tokens=30)
        assert reply.end is not None
        text, at = reply.text.encode(), 0
        sizes = [span.size for span in reply.end.spans]
        assert sum(sizes) == len(text)
        for size in sizes[:-1]:
            at += size
            head, tail = text[at - size : at], text[at : at + 12].decode(errors="ignore").encode()
            for name in PAIR:
                vocab = ask.host.vocabs[name]
                assert vocab.encode(head) + vocab.encode(tail) == vocab.encode(head + tail)


def test_going_back_over_a_block_of_the_cache(ask: Asker) -> None:
    """Where drafts run over the end of a KV block, which the prefix cache then offers to others, the block is taken
    back: the text stays the model's own, and so does what others write behind the same words afterwards."""
    size = ask.host._engines[SMOL]._scheduler.kv_cache_manager.block_pool.hash_block_size
    (filler,) = ask.prompt_ids(SMOL, "one two three four five six seven eight nine ten " * 20)
    (ending,) = ask.prompt_ids(SMOL, PROMPTS[1])
    for short in (2, 9):
        cut = size - short - len(ending)
        while cut < 0:
            cut += size
        prompt = (*filler[:cut], *ending)
        assert len(prompt) % size == size - short
        alone = ask.send_ids(SMOL, (prompt,), max_tokens=16).result().text
        for kind in ("sweet", "em"):
            twice = ask.send_ids(f"{kind}-twice", (prompt, prompt), max_tokens=16).result()
            assert twice.text == alone
        assert ask.send_ids(SMOL, (prompt,), max_tokens=16).result().text == alone
