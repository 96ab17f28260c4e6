"""The same algorithms on plain transformers: one request after another, key-value caches, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from engines.byte_vocab import ByteVocab
from engines.union import Union
from ensembles.tokens.base import Fusion, Mixture, Step

__all__ = ["PlainLoop"]


class PlainLoop:
    """Models in `folders`, loaded in `dtype`."""

    def __init__(self, folders: Sequence[Path], dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        self._vocabs = [ByteVocab.load(folder) for folder in folders]
        self._union = Union.of(self._vocabs)
        self._models = [
            AutoModelForCausalLM.from_pretrained(f, dtype=getattr(torch, dtype)).eval() for f in folders
        ]

    @torch.inference_mode()
    def write(self, fusion: Fusion, prompts: Sequence[Sequence[int]], tokens: int) -> int:
        """Decode up to `tokens` symbols; returns how many."""
        feed = [list(prompt) for prompt in prompts]
        caches: list[object] = [None] * len(self._models)
        share = (1 / len(self._models),) * len(self._models)
        for written in range(tokens):
            logits = {}
            for m, model in enumerate(self._models):
                out = model(
                    torch.tensor([feed[m]]), past_key_values=caches[m], use_cache=True, logits_to_keep=1
                )
                logits[m], caches[m] = out.logits[0, -1], out.past_key_values
            decision = fusion.decide(Step(self._union, share, logits))
            assert isinstance(decision, Mixture)
            best = int(decision.q.argmax())
            symbol = best if decision.symbols is None else int(decision.symbols[best])
            if symbol == self._union.eos:
                return written
            feed = [vocab.encode(self._union.symbols[symbol]) for vocab in self._vocabs]
        return tokens
