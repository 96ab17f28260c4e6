"""The same fusions written a second time, as plain transformers loops: what the engine host is compared with.

Nothing here comes from engines/ or ensembles/: own byte tables, own encoding of what is fed back, own
arithmetic, mostly in numpy and dictionaries. One request at a time, every member at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Logits = list[Any]
Choose = Callable[[Logits], tuple[bytes, float]]
"""From the members' raw logits, numpy float64, to the next bytes (none: the end) and the lead over the second
most likely, as a ratio of probabilities or a difference of logits: near 0 rounding decides."""


class PlainModel:
    """A model in transformers in float32, and its ids as bytes."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        strings = self.tokenizer.convert_ids_to_tokens(list(range(self.model.config.vocab_size)))
        byte_level = "ByteLevel" in str(type(self.tokenizer.backend_tokenizer.decoder))
        special = set(self.tokenizer.all_special_ids) | {
            i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        self.emits = [
            None if i in special else bytes_of(string, byte_level) for i, string in enumerate(strings)
        ]
        eos = self.model.generation_config.eos_token_id
        marks = ("<|im_end|>", "<|endoftext|>", "<eos>", "<end_of_turn>")
        self.eos = sorted(
            {*(eos if isinstance(eos, list) else [eos]), *(i for i in special if strings[i] in marks)}
        )
        self.ids: dict[bytes, list[int]] = {b"": self.eos}
        for i, text in enumerate(self.emits):
            if text is not None and i not in self.eos:
                literal = not strings[i].startswith("<0x")
                self.ids.setdefault(text, []).insert(0 if literal else len(self.ids.get(text, [])), i)
        self.mute = np.array([i for i, text in enumerate(self.emits) if text is None and i not in self.eos])
        self._begins: dict[bytes, int | None] = {}

    @property
    def table(self) -> Any:
        """Input embeddings, numpy float64."""
        return self.model.get_input_embeddings().weight.detach().double().numpy()

    def encode(self, text: bytes) -> list[int]:
        """The ids to feed for appended bytes."""
        if text in self.ids:
            return [self.ids[text][0]]
        try:
            ids: list[int] = self.tokenizer(text.decode(), add_special_tokens=False)["input_ids"]
        except UnicodeDecodeError:
            ids = []
        if b"".join(self.emits[i] or b"" for i in ids) == text:
            return ids
        return [self.ids[text[i : i + 1]][0] for i in range(len(text))]

    def begin(self, text: bytes) -> bytes | None:
        """The symbol with which the model begins to write `text`."""
        if text in self.ids:
            return text
        if text not in self._begins:
            try:
                self._begins[text] = self.encode(text)[0]
            except KeyError:
                self._begins[text] = None
        first = self._begins[text]
        return None if first is None else self.emits[first]

    def value(self, z: Any, text: bytes) -> float:
        """The logit of a symbol: its ids' pooled."""
        found = z[self.ids[text]]
        return float(found.max() + np.log(np.exp(found - found.max()).sum()))

    def values(self, z: Any, texts: Sequence[bytes]) -> Any:
        """The logits of symbols."""
        return np.array([self.value(z, text) for text in texts])

    def run(self, ids: Sequence[int], cache: Any = None, last: int = 0) -> tuple[Any, Any]:
        """Logits after each of `ids`, or of the `last` so many, numpy float64, and the cache."""
        with torch.no_grad():
            out = self.model(
                torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, logits_to_keep=last
            )
        return out.logits[0].double().numpy(), out.past_key_values


def bytes_of(string: str, byte_level: bool) -> bytes:
    """What a token string emits."""
    if not byte_level:
        if string.startswith("<0x") and string.endswith(">") and len(string) == 6:
            return bytes.fromhex(string[3:5])
        return string.replace("▁", " ").encode()
    # GPT-2's table, from its definition: the three printable ranges stand for themselves, the rest is
    # shifted.
    table, shift = {}, 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table[chr(byte)] = byte
        else:
            table[chr(256 + shift)] = byte
            shift += 1
    return bytes(table[c] for c in string)


@dataclass
class PlainLoop:
    """Greedy fused decoding of `models` with a rule."""

    models: list[PlainModel]

    def write(self, prompts: Sequence[Sequence[int]], choose: Choose, tokens: int) -> tuple[bytes, int]:
        """Up to `tokens` tokens of the first model; and how many bytes came before the first near tie."""
        text, sure, spent = b"", None, 0
        state = [model.run(prompt) for model, prompt in zip(self.models, prompts, strict=True)]
        while True:
            symbol, lead = choose([z[-1] for z, _ in state])
            if lead < 1e-3 and sure is None:
                sure = len(text)
            if not symbol:
                break
            text += symbol
            fed = [model.encode(symbol) for model in self.models]
            spent += len(fed[0])
            if spent >= tokens:
                break
            state = [m.run(ids, cache) for m, ids, (_, cache) in zip(self.models, fed, state, strict=True)]
        return text, len(text) if sure is None else sure

    # ── the rules
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def gac(self, logits: Logits) -> tuple[bytes, float]:
        """½ p₁ + ½ p₂ over all byte strings."""
        q: dict[bytes, float] = {}
        for model, z in zip(self.models, logits, strict=True):
            z = z.copy()
            z[model.mute] = -np.inf
            p = np.exp(z - z.max())
            p /= p.sum() * len(logits)
            for i in np.argsort(-p)[:200].tolist():
                q[model.emits[i] or b""] = q.get(model.emits[i] or b"", 0.0)
            for text in q:
                q[text] += float(p[model.ids.get(text, [])].sum())
        # Symbols met first at a later member lack what the earlier ones give them.
        return _best(self._complete(q, logits))

    def _complete(self, q: dict[bytes, float], logits: Logits) -> dict[bytes, float]:
        whole = dict.fromkeys(q, 0.0)
        for model, z in zip(self.models, logits, strict=True):
            z = z.copy()
            z[model.mute] = -np.inf
            p = np.exp(z - z.max())
            p /= p.sum() * len(logits)
            for text in whole:
                whole[text] += float(p[model.ids.get(text, [])].sum())
        return whole

    def unite(self, logits: Logits, k: int = 10) -> tuple[bytes, float]:
        """The union of ten, renormalised."""
        union: dict[bytes, None] = {}
        for model, z in zip(self.models, logits, strict=True):
            quiet = z.copy()
            quiet[model.mute] = -np.inf
            for i in np.argsort(-quiet, kind="stable")[:k].tolist():
                union[b"" if i in model.eos else model.emits[i] or b""] = None
        q = dict.fromkeys(union, 0.0)
        for model, z in zip(self.models, logits, strict=True):
            borrowed: set[bytes] = set()
            raw = {}
            for text in union:
                if text in model.ids:
                    raw[text] = model.value(z, text)
                    continue
                first = model.begin(text)
                if first is not None and first not in union and first not in borrowed:
                    borrowed.add(first)
                    raw[text] = model.value(z, first)
            total = sum(np.exp(v) for v in raw.values())
            for text, v in raw.items():
                q[text] += float(np.exp(v) / total) / len(logits)
        return _best(q)

    def cp_delta(self, logits: Logits) -> tuple[bytes, float]:
        """½ log p₁ + ½ log p₂ over the byte strings that both have."""
        common = self._common()
        z = sum(self._pooled(m, z, common) / len(logits) for m, z in enumerate(logits))
        order = np.argsort(-z, kind="stable")
        return common[order[0]], float(z[order[0]] - z[order[1]])

    def _common(self) -> list[bytes]:
        first, *others = self.models
        return [text for text in first.ids if all(text in other.ids for other in others)]

    def _pooled(self, member: int, z: Any, texts: Sequence[bytes]) -> Any:
        """Logits of many symbols: single ids at once, pooled ones by themselves."""
        ids = self.models[member].ids
        out = z[[ids[text][0] for text in texts]]
        for i, text in enumerate(texts):
            if len(ids[text]) > 1:
                out[i] = self.models[member].value(z, text)
        return out

    def packed(self, prompts: Sequence[Sequence[int]], mode: str, reach: int = 48) -> Choose:
        """PackLLM's rule for this prompt."""
        texts = [b"".join(m.emits[i] or b"" for i in p) for m, p in zip(self.models, prompts, strict=True)]
        run = _longest_common(*texts)
        rows: list[list[tuple[int, bytes, Any]]] = []
        for model, prompt, text in zip(self.models, prompts, texts, strict=True):
            z, _ = model.run(prompt)
            start, at, found = text.rfind(run), 0, []
            for i, token in enumerate(prompt):
                piece = model.emits[token] or b""
                if piece and i and start <= at and at + len(piece) <= start + len(run):
                    found.append((at - start, piece, z[i - 1]))
                at += len(piece)
            rows.append(found[-reach:])

        def mass(model: PlainModel, z: Any) -> float:
            keep = np.delete(z, model.mute) if len(model.mute) else z
            return float(keep.max() + np.log(np.exp(keep - keep.max()).sum()))

        losses = [
            sum(mass(model, z) - model.value(z, piece) for _, piece, z in found)
            / sum(len(x) for _, x, _ in found)
            for model, found in zip(self.models, rows, strict=True)
        ]
        reference = int(np.argmin(losses))
        symbols = list(self.models[reference].ids)
        reads = [[model.begin(text) for text in symbols] for model in self.models]
        place = {text: i for i, text in enumerate(symbols)}

        def mapped(m: int, z: Any) -> Any:
            known = [text if text is not None else symbols[0] for text in reads[m]]
            out = self._pooled(m, z, known)
            return np.where([text is None for text in reads[m]], -1e4, out)

        if mode == "sim":
            token = np.mean([len(piece) for _, piece, _ in rows[reference]])
            raw = np.exp(-np.array(losses) * token)
            weights = raw / raw.sum()
        else:
            other = 1 - reference
            at = {start: z for start, _, z in rows[other]}
            points = [(start, piece, z) for start, piece, z in rows[reference] if start in at]
            label = np.array([place[piece] for _, piece, _ in points])
            ours = np.stack([mapped(reference, z) for _, _, z in points])
            theirs = np.stack([mapped(other, at[start]) for start, _, _ in points])

            def nll(z: Any) -> float:
                top = z.max(-1)
                lse = top + np.log(np.exp(z - top[:, None]).sum(-1))
                return float((lse - z[np.arange(len(label)), label]).mean())

            first, second = (reference, other) if nll(ours) <= nll(theirs) else (other, reference)
            best, worse = (ours, theirs) if first == reference else (theirs, ours)
            grid = [nll(i / 20 * best + (1 - i / 20) * worse) for i in range(21)]
            share = int(np.argmin(grid)) / 20
            weights = np.zeros(2)
            weights[first], weights[second] = share, 1 - share

        def choose(logits: Logits) -> tuple[bytes, float]:
            z = sum(weights[m] * mapped(m, z) for m, z in enumerate(logits))
            order = np.argsort(-z, kind="stable")
            return symbols[order[0]], float(z[order[0]] - z[order[1]])

        return choose

    def deepened(self, eta: float, anchors: int, rows: int) -> Choose:
        """DeePEn's rule, main first, with autograd, AdamW and torch's schedule."""
        common = [text for text in self._common() if text]
        draw = torch.randperm(len(common), generator=torch.Generator().manual_seed(0))[:anchors]
        chosen = [common[i] for i in sorted(draw.tolist())]
        tables = [model.table for model in self.models]
        tables = [table / np.linalg.norm(table, axis=1, keepdims=True) for table in tables]

        def relative(m: int, ids: Sequence[int]) -> Any:
            spots = [self.models[m].ids[text][0] for text in chosen]
            cosines = tables[m][ids] @ tables[m][spots].T
            cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
            return torch.tensor(100 * cosines).softmax(-1)

        def likely(m: int, z: Any) -> tuple[list[bytes], Any, Any]:
            model, quiet = self.models[m], z.copy()
            quiet[model.mute] = -np.inf
            order = np.argsort(-quiet, kind="stable")[:rows].tolist()
            texts = list(dict.fromkeys(b"" if i in model.eos else model.emits[i] or b"" for i in order))
            values = torch.tensor(model.values(z, texts))
            return texts, values, relative(m, [model.ids[text][0] for text in texts])

        def choose(logits: Logits) -> tuple[bytes, float]:
            images = [likely(m, z) for m, z in enumerate(logits)]
            target = sum(v.softmax(-1) @ table / len(images) for _, v, table in images)
            texts, z, table = images[0]
            if not texts[int(z.argmax())]:
                return b"", 1.0
            z = z.clone().requires_grad_()
            adam = torch.optim.AdamW([z], lr=eta, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=10, eta_min=eta / 4)
            for _ in range(5):
                adam.zero_grad()
                loss = (target * (target.log() - (z.softmax(-1) @ table).log())).mean()
                loss.backward()
                adam.step()
                schedule.step()
            best = z.detach().topk(2)
            return texts[int(best.indices[0])], float(best.values[0] - best.values[1])

        return choose


def _best(q: dict[bytes, float]) -> tuple[bytes, float]:
    first, second = sorted(q, key=lambda text: -q[text])[:2]
    return first, q[first] / q[second] - 1


def _longest_common(a: bytes, b: bytes) -> bytes:
    best = b""
    for i in range(len(a)):
        while a[i : i + len(best) + 1] in b and i + len(best) < len(a):
            best = a[i : i + len(best) + 1]
    return best
