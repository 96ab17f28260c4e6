"""The split step against probe mode: every symbol from a fresh request over the whole text so far.

A probe knows nothing of feeding, stalling or catching up: it reads prompt and text anew (through the prefix
cache), decides once, and is thrown away. Slow, and right by construction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import PROMPTS

if TYPE_CHECKING:
    from tests.engines.conftest import Asker

pytestmark = pytest.mark.models

SYMBOLS = 8
FUSIONS = ("duet", "unite", "cp-delta", "deepen")


def test_the_split_step_equals_probes(ask: Asker) -> None:
    """In float32, symbol by symbol, the engines' warm caches give the same text as fresh ones."""
    whole = {fusion: ask(fusion, PROMPTS[1], max_tokens=40).text.encode() for fusion in FUSIONS}
    prompts = {fusion: ask.prompt_ids(fusion, PROMPTS[1]) for fusion in FUSIONS}
    texts = dict.fromkeys(FUSIONS, b"")
    for _ in range(SYMBOLS):
        # Enough room for the longest symbol, of which only the first one counts.
        probes = {f: ask.send_ids(f, prompts[f], max_tokens=4, top_logprobs=0) for f in FUSIONS}
        for fusion, probe in probes.items():
            reply = probe.result()
            if not reply.tokens:
                continue
            symbol = reply.tokens[0].token
            texts[fusion] += symbol
            members = ask.host.members_of(fusion)
            prompts[fusion] = tuple(
                (*ids, *ask.host.vocabs[m].encode(symbol))
                for ids, m in zip(prompts[fusion], members, strict=True)
            )
    for fusion in FUSIONS:
        assert len(texts[fusion]) > SYMBOLS
        assert whole[fusion].startswith(texts[fusion]), fusion
