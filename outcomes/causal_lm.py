"""A causal language model of the Llama family, run in numpy: what a language-model router asks at run time.

    state = norm(layers(embed(ids))),  logits = state · (rows of the vocabulary)ᵀ
    every adapted product: x·Wᵀ + (x·Aᵀ)·Bᵀ     (LoRA: Hu et al., 2021, its scale within B)

Training is `outcomes.causal_training` (torch); this is the forward pass of what it leaves behind, so that a gateway
worker serves trained language models without torch. The base weights are mapped from their file, not read: workers
that serve the same base share one copy of it in the page cache, and an adapter is a megabyte of its own. Texts are
read one by one, without padding: what is said of a query never depends on its neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson

from outcomes.fine_tuning import start_folder
from protocol.errors import MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Past = list[tuple[Array, Array]]
    Adapter = Mapping[str, tuple[Array, Array]]

__all__ = ["CausalLm", "LmShape", "lineage", "rotation", "together"]

FAMILIES = ("llama", "mistral")
MAX_HEADER_BYTES = 16 * 1024 * 1024
BLOCK = 64
"""Tokens whose logits are held at once."""
QUESTION = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the question while a chat template is rendered."""


@dataclass(frozen=True, slots=True)
class LmShape:
    """What the weights do not say. `ends`: tokens that end an answer; `context`: tokens it can read."""

    heads: int
    kv_heads: int
    eps: float
    theta: float
    ends: tuple[int, ...]
    context: int


@dataclass(frozen=True, eq=False)
class CausalLm:
    """A language model: its `shape`, `weights` by Hugging Face name (float32), `tokenizer.json` as bytes, chat
    `template` (Jinja; empty: none), the `name` of its folder, and the `adapter` that was trained: for a product's
    name A, shape (rank, n_in), and B, shape (n_out, rank); or several of them at once (`together`), then each with an
    axis before."""

    name: str
    folder: Path
    shape: LmShape
    weights: Mapping[str, Array]
    vocabulary: bytes
    template: str = ""
    adapter: Adapter = field(default_factory=dict)

    @classmethod
    def load(cls, start: str) -> Self:
        """The model at `start`: a Hugging Face folder, or a weights id. Raises `MethodError`."""
        folder = start_folder(start, "language model")
        try:
            config = orjson.loads((folder / "config.json").read_bytes())
            vocabulary = (folder / "tokenizer.json").read_bytes()
            files = sorted(folder.glob("model*.safetensors"))
            found = {name: value for path in files for name, value in _mapped(path).items()}
            template = _template(folder)
        except (OSError, orjson.JSONDecodeError, ValueError, KeyError) as error:
            raise MethodError(f"{folder} holds no language model to start from: {error}.") from None
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        plain = (
            config.get("model_type") in FAMILIES
            and config.get("hidden_act") == "silu"
            and rope.get("rope_type", "default") == "default"
            and not any(config.get(name) for name in ("attention_bias", "mlp_bias", "sliding_window"))
        )
        if not plain:
            raise MethodError(
                f"{folder} holds a {config.get('model_type')}; language-model routers start from Llama models "
                "(plain rotary positions, no biases), such as SmolLM2."
            )
        ends = config.get("eos_token_id")
        shape = LmShape(
            heads=int(config["num_attention_heads"]),
            kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
            eps=float(config["rms_norm_eps"]),
            theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000),
            ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
            context=int(config["max_position_embeddings"]),
        )
        weights = {name.removeprefix("model."): value for name, value in found.items()}
        lm = cls(folder.name, folder, shape, weights, vocabulary, template)
        lm._check()
        return lm

    def adapted(self, adapter: Adapter) -> Self:
        """The same model with another adapter. Raises `MethodError` for products it does not have."""
        for name, (a, b) in adapter.items():
            weight = self.weights.get(f"{name}.weight")
            if weight is None or weight.shape != (b.shape[-2], a.shape[-1]) or a.shape[-2] != b.shape[-1]:
                raise MethodError(f"The adapter's {name} does not fit the language model {self.name}.")
        return replace(self, adapter=dict(adapter))

    @cached_property
    def digest(self) -> str:
        """Of all that decides what the base says: weights, tokenizer, template."""
        hashed = hashlib.sha256(self.vocabulary + self.template.encode())
        for name in sorted(self.weights):
            hashed.update(name.encode())
            hashed.update(np.ascontiguousarray(self.weights[name]).data)
        return f"sha256:{hashed.hexdigest()}"

    @property
    def dimensions(self) -> int:
        return int(self.weights["norm.weight"].shape[0])

    @cached_property
    def depth(self) -> int:
        """How many layers it has."""
        return sum(name.endswith("input_layernorm.weight") for name in self.weights)

    @property
    def head(self) -> Array:
        """The rows that states are multiplied with for logits, shape (n_vocabulary, dimensions)."""
        return self.weights.get("lm_head.weight", self.weights["embed_tokens.weight"])

    @cached_property
    def tokenizer(self) -> Any:
        """Raises `MethodError`."""
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_buffer(self.vocabulary)
        except ValueError as error:
            raise MethodError(f"The language model's tokenizer cannot be read: {error}.") from None
        found.no_truncation()
        found.no_padding()
        return found

    @cached_property
    def _foreign(self) -> Any:
        """The tokenizer for which marks of a turn's end and the like are letters as any."""
        from tokenizers import Tokenizer

        found = Tokenizer.from_str(self.tokenizer.to_str())
        found.encode_special_tokens = True
        return found

    def tokens(self, text: str) -> list[int]:
        """Token ids of words of ours, control tokens included."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def question(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of what others wrote: no words in it act as control tokens. Of a longer text the last `limit`."""
        ids = list(self._foreign.encode(text, add_special_tokens=False).ids)
        return ids if limit is None else ids[max(0, len(ids) - limit) :]

    def text(self, ids: Sequence[int]) -> str:
        """What `ids` say, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def framed(self, system: str, user: str) -> tuple[str, str]:
        """The prompt before and after a question. `user` holds the question as `{question}`; the model's chat template
        lays it out, with a plain transcript where it has none. Raises `MethodError`."""
        asked = user.replace("{question}", QUESTION)
        if not self.template:
            before, _, after = f"{system}\n\nUser: {asked}\n\nAssistant: ".partition(QUESTION)
            return before, after
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise MethodError("Chat templates need jinja2: pip install 'chorus-gateway[engines]'.") from None
        messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        # Never HTML: these are prompts, and escaping would change their words.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            shown = environment.from_string(self.template).render(
                messages=messages, add_generation_prompt=True, bos_token="", eos_token=""
            )
        except TemplateError as error:
            raise MethodError(f"The chat template of {self.name} cannot be used: {error}.") from None
        before, found, after = shown.partition(QUESTION)
        if not found:
            raise MethodError(f"The chat template of {self.name} leaves the question out.")
        return before, after

    def opening(self, ids: Sequence[int]) -> Past:
        """The past of what many texts begin with, such as an instruction: read once."""
        found = self._openings.get(tuple(ids))
        if found is None:
            found = self._openings[tuple(ids)] = self.read(ids)[1] if ids else []
        return found

    @cached_property
    def _openings(self) -> dict[tuple[int, ...], Past]:
        return {}

    def read(
        self, ids: Sequence[int], past: Past | None = None, parents: Sequence[int] | None = None
    ) -> tuple[Array, Past]:
        """States of `ids` that come after what `past` holds, shape (n_ids, dimensions), and the longer past; with
        several adapters one such array for each, (n_adapters, n_ids, dimensions).

        `parents` make a tree of them, whose branches do not see one another: for each of `ids` the place of the one
        before it, −1 for what follows `past` at once. Without, each follows the last.
        """
        w, shape = self.weights, self.shape
        x = w["embed_tokens.weight"][list(ids)]
        n, size = len(ids), w["layers.0.self_attn.q_proj.weight"].shape[0] // shape.heads
        start = past[0][0].shape[-2] if past else 0
        seen = lineage(range(-1, n - 1) if parents is None else parents)
        cos, sin = rotation(start + seen.sum(axis=1) - 1, size, shape.theta)
        seen = np.concatenate([np.ones((n, start), dtype=np.bool_), seen], axis=1)
        kept: Past = []
        for i in range(self.depth):
            at = f"layers.{i}"
            y = _rms(x, w[f"{at}.input_layernorm.weight"], shape.eps)
            q, k, v = (_heads(self._product(y, f"{at}.self_attn.{part}_proj"), size) for part in "qkv")
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
            if past:
                k, v = np.concatenate([past[i][0], k], -2), np.concatenate([past[i][1], v], -2)
            kept.append((k, v))
            grouped = q.reshape(*q.shape[:-3], shape.kv_heads, -1, n, size)
            score = (grouped @ k[..., None, :, :].swapaxes(-1, -2)) * np.float32(1 / math.sqrt(size))
            score = np.where(seen, score, np.float32(-np.inf))
            weight = np.exp(score - score.max(axis=-1, keepdims=True))
            weight /= weight.sum(axis=-1, keepdims=True)
            mixed = weight @ v[..., None, :, :]
            x = x + self._product(_joined(mixed, shape.heads), f"{at}.self_attn.o_proj")
            y = _rms(x, w[f"{at}.post_attention_layernorm.weight"], shape.eps)
            gate = self._product(y, f"{at}.mlp.gate_proj")
            inner = gate / (1 + np.exp(-gate)) * self._product(y, f"{at}.mlp.up_proj")
            x = x + self._product(inner, f"{at}.mlp.down_proj")
        return _rms(x, w["norm.weight"], shape.eps), kept

    def log_probabilities(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], past: Past | None = None
    ) -> NDArray[np.float64]:
        """Natural log of the probability of each of `continuations` after `ids`, which follow `past`: shape
        (n_continuations,), with several adapters (n_adapters, n_continuations). All are read at once, what they share
        once."""
        tokens, parents = list(ids), list(range(-1, len(ids) - 1))
        places: dict[tuple[int, int], int] = {}
        steps: list[list[tuple[int, int]]] = []
        for continuation in continuations:
            at, path = len(ids) - 1, []
            for i, token in enumerate(continuation):
                path.append((at, token))
                if i + 1 < len(continuation):
                    if (at, token) not in places:
                        places[at, token] = len(tokens)
                        tokens.append(token)
                        parents.append(at)
                    at = places[at, token]
            steps.append(path)
        states, _ = self.read(tokens, past, parents)
        wanted = sorted({step for path in steps for step in path})
        likely = dict(zip(wanted, np.moveaxis(self._next(states, wanted), -1, 0), strict=True))
        none = np.zeros(states.shape[:-2])
        return np.stack([sum((likely[step] for step in path), none) for path in steps], axis=-1)

    def _next(self, states: Array, wanted: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        """Natural log of the probability of a token after a place, for each pair of them, shape (…, n_pairs)."""
        found = np.empty((*states.shape[:-2], len(wanted)))
        for first in range(0, len(wanted), BLOCK):
            at, tokens = zip(*wanted[first : first + BLOCK], strict=True)
            places, rows = np.unique(at, return_inverse=True)
            logits = _times(states[..., places, :], self.head).astype(np.float64)
            top = logits.max(axis=-1)
            whole = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
            found[..., first : first + BLOCK] = logits[..., rows, tokens] - whole[..., rows]
        return found

    def _product(self, x: Array, name: str) -> Array:
        y = _times(x, self.weights[f"{name}.weight"])
        if (found := self.adapter.get(name)) is not None:
            a, b = found
            return np.asarray(y + (x @ a.swapaxes(-1, -2)) @ b.swapaxes(-1, -2))
        return y

    def _check(self) -> None:
        wanted = ["norm.weight", "embed_tokens.weight"]
        for i in range(self.depth):
            wanted += [f"layers.{i}.self_attn.{part}_proj.weight" for part in "qkvo"]
            wanted += [f"layers.{i}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
            wanted += [f"layers.{i}.{part}_layernorm.weight" for part in ("input", "post_attention")]
        missing = [name for name in wanted if name not in self.weights]
        if missing or not self.depth:
            raise MethodError(f"{self.folder} has no weights {', '.join(missing[:3]) or 'of layers'}.")


def together(lms: Sequence[CausalLm]) -> CausalLm:
    """One base under the adapters of all `lms`, which adapt the same products: read at once, and the layers below the
    first adapter once for all."""
    adapters = [lm.adapter for lm in lms]
    return lms[0].adapted(
        {
            name: (np.stack([one[name][0] for one in adapters]), np.stack([one[name][1] for one in adapters]))
            for name in adapters[0]
        }
    )


def lineage(parents: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens each one of a tree sees: those before it on its branch, and itself; shape (n, n)."""
    seen = np.eye(len(parents), dtype=np.bool_)
    for i, parent in enumerate(parents):
        if parent >= 0:
            seen[i] |= seen[parent]
    return seen


def rotation(positions: NDArray[np.int_], size: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines of rotary `positions`, each of shape (n, size)."""
    frequency = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angle = positions[:, None] * np.concatenate([frequency, frequency])
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _times(x: Array, weight: Array) -> Array:
    """Products of the last axis with `weight`, transposed, as one: the weights are gone through once."""
    return np.asarray((x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], -1))


def _heads(x: Array, size: int) -> Array:
    """From (…, n, heads · size) to (…, heads, n, size)."""
    return x.reshape(*x.shape[:-1], -1, size).swapaxes(-2, -3)


def _joined(x: Array, heads: int) -> Array:
    """From (…, groups, heads of a group, n, size) to (…, n, heads · size)."""
    *before, _, _, n, size = x.shape
    return x.reshape(*before, heads, n, size).swapaxes(-2, -3).reshape(*before, n, heads * size)


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return np.asarray(x * cos + turned * sin, dtype=np.float32)


def _rms(x: Array, weight: Array, eps: float) -> Array:
    scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + np.float32(eps))
    return np.asarray(x / scale * weight, dtype=np.float32)


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    about = folder / "tokenizer_config.json"
    found = orjson.loads(about.read_bytes()).get("chat_template") if about.is_file() else None
    return found if isinstance(found, str) else ""


def _mapped(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file as float32; those that are, mapped rather than read. Raises `ValueError`,
    `OSError`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} has a header of {length} bytes")
        header = orjson.loads(file.read(length))
    whole = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, end = about["data_offsets"]
        raw = np.asarray(whole[start:end])
        if about["dtype"] == "F32":
            value = raw.view(np.float32)
        elif about["dtype"] == "F16":
            value = raw.view(np.float16).astype(np.float32)
        elif about["dtype"] == "BF16":
            value = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            raise ValueError(f"{name} is of type {about['dtype']}")
        found[name] = value.reshape(about["shape"])
    return found
