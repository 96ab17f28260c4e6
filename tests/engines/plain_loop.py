"""The same fusions written a second time, as plain transformers loops: what the engine host is compared with.

Nothing here comes from engines/ or ensembles/: own byte tables, own encoding of what is fed back, own
arithmetic, mostly in numpy and dictionaries. One request at a time, every member at every step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

Logits = list[Any]
Member = tuple[tuple[bytes, ...], float, bool]
"""A member's part of a search's text: the pieces it wrote, their log-probability, and whether it ended."""
Joint = tuple[Member, ...]


@dataclass(frozen=True)
class Fused:
    """The next-symbol distribution: texts (none: the end), the first of equals first, and their probabilities."""

    texts: Sequence[bytes]
    q: Any

    def best(self) -> tuple[bytes, float]:
        """The most likely bytes, and by which part they lead the second: near 0 rounding decides."""
        order = np.argsort(-self.q, kind="stable")[:2]
        second = float(self.q[order[1]]) if len(order) > 1 else 0.0
        return self.texts[order[0]], float(self.q[order[0]]) / second - 1 if second > 0 else float("inf")


Rule = Callable[[Logits], Fused]
"""From the members' raw logits, numpy float64, to what comes next."""


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

    def embedded(self, ids: Sequence[int]) -> Any:
        """Input embeddings, numpy float64, scaled to length 1."""
        rows = self.model.get_input_embeddings().weight.detach()[list(ids)].double().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

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

    def reader(self, texts: Sequence[bytes]) -> Callable[[Any], Any]:
        """`values` of these texts, for many z: single ids at once, pooled ones by themselves."""
        first = np.array([self.ids[text][0] for text in texts])
        pooled = [i for i, text in enumerate(texts) if len(self.ids[text]) > 1]

        def read(z: Any) -> Any:
            out = z[first]
            for i in pooled:
                out[i] = self.value(z, texts[i])
            return out

        return read

    def probabilities(self, z: Any) -> Any:
        """Of each id, controls silent."""
        z = z.copy()
        z[self.mute] = -np.inf
        return _softmax(z)

    def run(self, ids: Sequence[int], cache: Any = None, last: int = 0) -> tuple[Any, Any]:
        """Logits after each of `ids`, or of the `last` so many, numpy float64, and the cache."""
        with torch.no_grad():
            out = self.model(
                torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, logits_to_keep=last
            )
        return out.logits[0].double().numpy(), out.past_key_values

    def look(self, ids: Sequence[int], cache: Any = None) -> tuple[Any, Any, Any]:
        """Logits after the last of `ids`, its hidden states from the embedding to the final norm, numpy float64, and
        the cache."""
        with torch.no_grad():
            out = self.model(
                torch.tensor([list(ids)]),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
                logits_to_keep=1,
            )
        states = torch.stack([state[0, -1] for state in out.hidden_states])
        return out.logits[0, -1].double().numpy(), states.double().numpy(), out.past_key_values


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
    _maps: dict[int, tuple[list[bytes], list[Callable[[Any], Any]]]] = field(default_factory=dict)

    def write(
        self, prompts: Sequence[Sequence[int]], rule: Rule, tokens: int, steps: list[Fused] | None = None
    ) -> tuple[bytes, int]:
        """Up to `tokens` tokens of the first model; and how many bytes came before the first near tie. `steps` is
        given every distribution."""
        text, sure, spent = b"", None, 0
        state = [model.run(prompt, last=1) for model, prompt in zip(self.models, prompts, strict=True)]
        while True:
            fused = rule([z[-1] for z, _ in state])
            if steps is not None:
                steps.append(fused)
            symbol, lead = fused.best()
            if lead < 1e-3 and sure is None:
                sure = len(text)
            if not symbol:
                break
            fed = [model.encode(symbol) for model in self.models]
            main, room = self.models[0], tokens - spent
            cut = [main.emits[i] or b"" for i in fed[0][:room]] if len(fed[0]) > room else [symbol]
            text += b"".join(cut)
            spent += len(fed[0])
            if spent >= tokens:
                break
            state = [
                m.run(ids, cache, last=1) for m, ids, (_, cache) in zip(self.models, fed, state, strict=True)
            ]
        return text, len(text) if sure is None else sure

    # ── the rules ───────────────────────────────────────────────────────────────────────────────────────────

    def gac(self, logits: Logits, threshold: float | None = None) -> Fused:
        """½ p₁ + ½ p₂ over all byte strings likely in one of them; p₁ alone where it is sure."""
        p = [model.probabilities(z) for model, z in zip(self.models, logits, strict=True)]
        if threshold is not None:
            alone = self.mixed(p[:1], [1.0])
            if alone.q.max() > threshold:
                return alone
        return self.mixed(p, [1 / len(p)] * len(p))

    def mixed(self, p: Sequence[Any], weights: Sequence[float]) -> Fused:
        """Σ w p, of the symbols that are among the likeliest somewhere."""
        models = self.models[: len(p)]
        texts = list(
            dict.fromkeys(
                model.emits[i] or b"" for model, row in zip(models, p, strict=True) for i in largest(row, 200)
            )
        )
        q = np.zeros(len(texts))
        for model, row, weight in zip(models, p, weights, strict=True):
            q += weight * np.array([row[model.ids.get(text, [])].sum() for text in texts])
        return Fused(texts, q)

    def unite(self, logits: Logits, k: int = 10) -> Fused:
        """The union of ten, renormalised."""
        union: dict[bytes, None] = {}
        for model, z in zip(self.models, logits, strict=True):
            for i in largest(model.probabilities(z), k):
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
        return Fused(list(q), np.array(list(q.values())))

    def cp_delta(self, logits: Logits) -> Fused:
        """½ log p₁ + ½ log p₂ over the byte strings that both have."""
        z = sum(read(z) / len(logits) for read, z in zip(self._commonly, logits, strict=True))
        return Fused(self._common, _softmax(z))

    @cached_property
    def _common(self) -> list[bytes]:
        first, *others = self.models
        return [text for text in first.ids if all(text in other.ids for other in others)]

    @cached_property
    def _commonly(self) -> list[Callable[[Any], Any]]:
        """Of each model, how it reads them."""
        return [model.reader(self._common) for model in self.models]

    def _mapped(self, reference: int) -> tuple[list[bytes], list[Callable[[Any], Any]]]:
        """The texts of a model, and of each model how it reads them: what it lacks by its first token, if any."""
        if reference not in self._maps:
            symbols = list(self.models[reference].ids)
            readers = []
            for model in self.models:
                begins = [model.begin(text) for text in symbols]
                lacks = np.array([text is None for text in begins])
                read = model.reader([symbols[0] if text is None else text for text in begins])
                readers.append(lambda z, read=read, lacks=lacks: np.where(lacks, -1e4, read(z)))
            self._maps[reference] = symbols, readers
        return self._maps[reference]

    def packed(self, prompts: Sequence[Sequence[int]], mode: str, reach: int = 48) -> Rule:
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
        symbols, mapped = self._mapped(reference)
        place = {text: i for i, text in enumerate(symbols)}

        if mode == "sim":
            token = np.mean([len(piece) for _, piece, _ in rows[reference]])
            raw = np.exp(-np.array(losses) * token)
            weights = raw / raw.sum()
        else:
            other = 1 - reference
            at = {start: z for start, _, z in rows[other]}
            points = [(start, piece, z) for start, piece, z in rows[reference] if start in at]
            label = np.array([place[piece] for _, piece, _ in points])
            ours = np.stack([mapped[reference](z) for _, _, z in points])
            theirs = np.stack([mapped[other](at[start]) for start, _, _ in points])

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

        def fuse(logits: Logits) -> Fused:
            return Fused(symbols, _softmax(sum(weights[m] * mapped[m](z) for m, z in enumerate(logits))))

        return fuse

    def deepened(self, eta: float, anchors: int, rows: int) -> Rule:
        """DeePEn's rule, main first, with autograd, AdamW and torch's schedule."""
        common = [text for text in self._common if text]
        draw = torch.randperm(len(common), generator=torch.Generator().manual_seed(0))[:anchors]
        chosen = [common[i] for i in sorted(draw.tolist())]
        spots = [model.embedded([model.ids[text][0] for text in chosen]) for model in self.models]

        def relative(m: int, ids: Sequence[int]) -> Any:
            cosines = self.models[m].embedded(ids) @ spots[m].T
            cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
            return torch.tensor(100 * cosines).softmax(-1)

        def likely(m: int, z: Any) -> tuple[list[bytes], Any, Any]:
            model = self.models[m]
            order = largest(model.probabilities(z), rows)
            texts = list(dict.fromkeys(b"" if i in model.eos else model.emits[i] or b"" for i in order))
            values = torch.tensor(model.values(z, texts))
            return texts, values, relative(m, [model.ids[text][0] for text in texts])

        def fuse(logits: Logits) -> Fused:
            images = [likely(m, z) for m, z in enumerate(logits)]
            target = sum(v.softmax(-1) @ table / len(images) for _, v, table in images)
            texts, z, table = images[0]
            if not texts[int(z.argmax())]:
                return self.mixed([self.models[0].probabilities(logits[0])], [1.0])
            z = z.clone().requires_grad_()
            adam = torch.optim.AdamW([z], lr=eta, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=10, eta_min=eta / 4)
            for _ in range(5):
                adam.zero_grad()
                loss = (target * (target.log() - (z.softmax(-1) @ table).log())).mean()
                loss.backward()
                # What rounding in the members' float32 logits can make: DeePEn here leaves such logits alone.
                z.grad[z.grad.abs() < 1e-4 * z.detach().softmax(-1) / len(target)] = 0
                adam.step()
                schedule.step()
            return Fused(texts, z.detach().softmax(-1).numpy())

        return fuse

    def projected(self, image_of: Callable[[bytes], list[tuple[bytes, float]]], top: int, drop: int) -> Rule:
        """EVA's rule, pivot first. `image_of` is S: what a text of the second model looks like in the pivot."""

        def fuse(logits: Logits) -> Fused:
            images: list[dict[bytes, float]] = []
            for m, (model, z) in enumerate(zip(self.models, logits, strict=True)):
                order = largest(model.probabilities(z), top)
                texts = list(dict.fromkeys(b"" if i in model.eos else model.emits[i] or b"" for i in order))
                image: dict[bytes, float] = {}
                for text, p in zip(texts, _softmax(model.values(z, texts)), strict=True):
                    for other, score in [(text, 1.0)] if m == 0 else image_of(text):
                        image[other] = image.get(other, 0.0) + float(p * score)
                images.append(image)
            first = [sorted(image, key=lambda text: -image[text])[:drop] for image in images]
            heard = [
                image[mine[0]] > 0
                and any(
                    mine[0] in theirs and images[o][mine[0]] > 0 for o, theirs in enumerate(first) if o != m
                )
                for m, (image, mine) in enumerate(zip(images, first, strict=True))
            ]
            survivors = [image for image, one in zip(images, heard, strict=True) if one] or images
            q: dict[bytes, float] = {}
            for image in survivors:
                for text, p in image.items():
                    q[text] = q.get(text, 0.0) + p
            return Fused(list(q), np.array(list(q.values())) / sum(q.values()))

        return fuse

    # ── a search ────────────────────────────────────────────────────────────────────────────────────────────

    def search(
        self, prompts: Sequence[Sequence[int]], beams: int, candidates: int, tokens: int
    ) -> tuple[bytes, bool]:
        """ABE, every pair of moves looked at; and whether rounding had a say nowhere."""
        weight = 1 / len(self.models)
        # Of each member: its texts, what they scored, and whether it ended.
        start: Joint = tuple(((), 0.0, False) for _ in self.models)
        beam, finished, sure = [start], [], True

        def text(one: Member) -> bytes:
            return b"".join(one[0])

        def value(joint: Joint) -> float:
            return sum(weight * s / max(1, len(written) + ended) for written, s, ended in joint)

        while beam and len(finished) < beams:
            grown: dict[Joint, float] = {}
            for joint in beam:
                longest = max((text(one) for one in joint), key=len)
                closing = any(ended for _, _, ended in joint)
                lag = [not one[2] and (len(text(one)) < len(longest) or closing) for one in joint]
                moves: list[list[Member]] = []
                for m, (one, late) in enumerate(zip(joint, lag, strict=True)):
                    if one[2] or (any(lag) and not late):
                        moves.append([one])
                        continue
                    model = self.models[m]
                    fed = [i for piece in one[0] for i in model.encode(piece)]
                    z = model.run([*prompts[m], *fed], last=1)[0][-1]
                    p = model.probabilities(z)
                    missing = longest[len(text(one)) :]
                    if missing:
                        fits = [
                            x for x in model.ids if x and (missing.startswith(x) or x.startswith(missing))
                        ]
                    elif closing:
                        fits = [b""]
                    else:
                        fits = [
                            b"" if i in model.eos else model.emits[i] or b"" for i in largest(p, candidates)
                        ]
                    moves.append(
                        [
                            ((*one[0], x) if x else one[0], one[1] + math.log(p[model.ids[x]].sum()), not x)
                            for x in dict.fromkeys(fits)
                            if p[model.ids[x]].sum() > 0
                        ]
                    )
                for together in itertools.product(*moves):
                    texts = [text(one) for one in together]
                    top = max(texts, key=len)
                    agree = all(top.startswith(x) for x in texts)
                    if agree and not any(one[2] and x != top for one, x in zip(together, texts, strict=True)):
                        grown[together] = value(together)
            order = sorted(grown, key=lambda joint: -grown[joint])
            beam, alive = [], 0
            for place, joint in enumerate(order):
                if alive == beams:
                    sure = sure and abs(grown[joint] - grown[order[place - 1]]) > 1e-5
                    break
                ended = all(one[2] for one in joint)
                alive += not ended
                spent = sum(len(self.models[0].encode(piece)) for piece in joint[0][0])
                (finished if ended or spent >= tokens else beam).append(joint)
        ranked = sorted(finished, key=lambda joint: -value(joint))
        if len(ranked) > 1 and text(ranked[0][0]) != text(ranked[1][0]):
            sure = sure and value(ranked[0]) - value(ranked[1]) > 1e-5
        return text(ranked[0][0]), sure


def largest(p: Any, n: int) -> list[int]:
    """The n largest, best first, the first of equals first."""
    some = np.argpartition(-p, min(n, len(p) - 1))[: n + 1]
    return sorted(some.tolist(), key=lambda i: (-p[i], i))[:n]


def _softmax(z: Any) -> Any:
    p = np.exp(z - z.max())
    return p / p.sum()


def _longest_common(a: bytes, b: bytes) -> bytes:
    best = b""
    for i in range(len(a)):
        while a[i : i + len(best) + 1] in b and i + len(best) < len(a):
            best = a[i : i + len(best) + 1]
    return best
