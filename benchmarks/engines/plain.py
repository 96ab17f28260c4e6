"""The same algorithms on plain transformers: key-value caches, greedy; one request after another, or a static batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engines.spin import spin
from engines.byte_vocab import ByteVocab
from engines.templates import Prompting
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
        spin()

    def prompts(self, templates: Sequence[Prompting], question: str) -> list[list[int]]:
        """A question as each member is asked it."""
        messages = [{"role": "user", "content": question}]
        return [
            vocab.encode_prompt(template.render(messages).text)
            for vocab, template in zip(self._vocabs, templates, strict=True)
        ]

    @torch.inference_mode()
    def write(self, fusion: Fusion, prompts: Sequence[Sequence[Sequence[int]]], tokens: int) -> int:
        """Decode `tokens` symbols of every request, all at once; returns how many symbols that is.

        `prompts[i][m]` is request i's prompt for member m. An answer that ends is written on: a static batch computes
        its row all the same, and rates are compared by what is computed."""
        feed = [[list(request[m]) for request in prompts] for m in range(len(self._models))]
        caches: list[object] = [None] * len(self._models)
        masks = [torch.ones((len(prompts), 0), dtype=torch.int64) for _ in self._models]
        share = (1 / len(self._models),) * len(self._models)
        for _ in range(tokens):
            rows = []
            for m, model in enumerate(self._models):
                ids, new = _padded(feed[m])
                masks[m] = torch.cat([masks[m], new], dim=1)
                places = (masks[m].cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
                out = model(
                    ids,
                    attention_mask=masks[m],
                    position_ids=places,
                    past_key_values=caches[m],
                    use_cache=True,
                    logits_to_keep=1,
                )
                rows.append(out.logits[:, -1])
                caches[m] = out.past_key_values
            chosen = [self._choose(fusion, share, [row[i] for row in rows]) for i in range(len(prompts))]
            feed = [[vocab.encode(symbol) for symbol in chosen] for vocab in self._vocabs]
        return tokens * len(prompts)

    def _choose(self, fusion: Fusion, share: tuple[float, ...], logits: Sequence[torch.Tensor]) -> bytes:
        """The likeliest symbol that is text."""
        decision = fusion.decide(Step(self._union, share, dict(enumerate(logits))))
        assert isinstance(decision, Mixture)
        q = decision.q.clone()
        symbols = torch.arange(self._union.size) if decision.symbols is None else decision.symbols
        q[symbols == self._union.eos] = -1
        return self._union.symbols[int(symbols[int(q.argmax())])]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with padding in front, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
