"""A model that reads texts in transformers, in the precision it is served in: hidden states, and what it would have
written there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.byte_vocab import ByteVocab, Kind
from engines.templates import Prompting

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["Read", "Reader"]


@dataclass(frozen=True, slots=True)
class Read:
    """At n places of a text: `states` after the final norm, shape (n, d), float32; the token the model would write, as
    bytes, none for an end, and its logit `top`; the log of Σ exp of all logits, `mass`; the logit of the token that
    `came`; all three of shape (n,). Controls count nowhere, as in a fusion."""

    states: Tensor
    best: tuple[bytes, ...]
    top: Tensor
    mass: Tensor
    came: Tensor


class Reader:
    """The model in a Hugging Face folder; `dtype` as in `EngineSpec`."""

    def __init__(self, folder: Path, prompting: Prompting, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.vocab = ByteVocab.load(folder)
        self._prompting = prompting
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._model.requires_grad_(requires_grad=False)
        self._mute = torch.tensor([i for i, kind in enumerate(self.vocab.kind) if kind is Kind.CONTROL])
        self._end = min(self.vocab.eos)

    @property
    def head(self) -> Tensor:
        """The output head, shape (≥ |V|, d)."""
        weight: Tensor = self._model.get_output_embeddings().weight
        return weight.float()

    def prompt(self, question: str) -> list[int]:
        """The ids of a question under the model's own template."""
        return self.vocab.encode_prompt(self._prompting.render([{"role": "user", "content": question}]).text)

    def read(self, prompt: Sequence[int], pieces: Sequence[Sequence[int]], *, ended: bool) -> Read:
        """Read a text, cut in pieces of ids, behind a prompt: the places are those before each piece, and the text's
        end where the text `ended`. What came at a place is its piece's first id."""
        import torch

        ids, ends, came = list(prompt), [], []
        for piece in pieces:
            ends.append(len(ids) - 1)
            came.append(piece[0])
            ids += piece
        if ended:
            ends.append(len(ids) - 1)
            came.append(self._end)
        with torch.inference_mode():
            states = self._model.base_model(torch.tensor([ids])).last_hidden_state[0, ends]
            logits = self._model.lm_head(states)[:, : len(self.vocab)].float()
            logits[:, self._mute] = float("-inf")
            best = tuple(self.vocab.emits[i] for i in logits.argmax(-1).tolist())
            chosen = logits.gather(1, torch.tensor(came)[:, None])[:, 0]
            return Read(states.float(), best, logits.amax(-1), logits.logsumexp(-1), chosen)
