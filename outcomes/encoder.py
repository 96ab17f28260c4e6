"""A small BERT-family encoder with a linear head, served in numpy: what an encoder router asks at run time.

    outputs(text) = pool(hidden(text)) · W + b,   pool = mean over tokens, or its direction alone (`unit`)

Training is `outcomes.encoder_training` (torch); this module is the forward pass of what it leaves behind, so that a
gateway worker serves trained encoders without torch. Weights keep their Hugging Face names. Texts are encoded one by
one, without padding: a query's outputs never depend on its neighbours. The tokenizer travels inside the artefact's
tensors, as bytes, so that one digest covers all that decides an output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson

from outcomes.artefact import tensor
from outcomes.fine_tuning import start_folder
from protocol.errors import MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

__all__ = ["Encoder", "EncoderShape", "TrainedEncoder", "starting_encoder", "weight_names"]


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What the weights do not say: attention `heads`, `eps` of the layer norms, `max_tokens` read of a text, and
    whether longer ones lose their end (`right`) or their beginning (`left`)."""

    heads: int
    eps: float
    max_tokens: int
    truncate: str = "right"

    def wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Raises `MethodError`."""
        try:
            shape = cls(**value)
            sound = shape.heads > 0 and shape.eps > 0 and shape.max_tokens > 2
        except TypeError:
            sound = False
        if not sound or shape.truncate not in ("left", "right"):
            raise MethodError(f"{value!r} is not the shape of an encoder.")
        return shape


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder: its `shape`, its `weights` by Hugging Face name (float32), and its `tokenizer.json` as bytes."""

    shape: EncoderShape
    weights: Mapping[str, Array]
    vocabulary: bytes

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int, truncate: str = "right") -> Self:
        """Read a Hugging Face or sentence-transformers folder of a BERT model. Raises `MethodError`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            config = orjson.loads((folder / "config.json").read_bytes())
            found = load_file(folder / "model.safetensors")
            vocabulary = (folder / "tokenizer.json").read_bytes()
        except (OSError, orjson.JSONDecodeError, SafetensorError) as error:
            raise MethodError(f"{folder} holds no encoder to start from: {error}.") from None
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise MethodError(
                f"{folder} holds a {config.get('model_type')} with {config.get('hidden_act')}; encoders are BERT "
                "models with gelu, such as all-MiniLM-L6-v2 or bert-base."
            )
        weights = {name.removeprefix("bert."): value for name, value in found.items()}
        limit = min(max_tokens, int(config["max_position_embeddings"]))
        shape = EncoderShape(
            int(config["num_attention_heads"]), float(config["layer_norm_eps"]), limit, truncate
        )
        return cls._checked(shape, weights, vocabulary)

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]], shape: EncoderShape) -> Self:
        """The encoder that the tensors of an artefact hold. Raises `MethodError`."""
        vocabulary = tensor(tensors, "tokenizer", (None,)).astype(np.uint8).tobytes()
        return cls._checked(shape, tensors, vocabulary)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The encoder as tensors of an artefact."""
        return {**self.weights, "tokenizer": np.frombuffer(self.vocabulary, dtype=np.uint8)}

    @property
    def dimensions(self) -> int:
        return int(self.weights["embeddings.LayerNorm.weight"].shape[0])

    @cached_property
    def tokenizer(self) -> Any:
        """Cuts at `shape.max_tokens`, special tokens included; pads nothing. Raises `MethodError`."""
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_buffer(self.vocabulary)
        except ValueError as error:
            raise MethodError(f"The encoder's tokenizer cannot be read: {error}.") from None
        found.enable_truncation(self.shape.max_tokens, direction=self.shape.truncate)
        found.no_padding()
        return found

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text. Raises `MethodError` for ids the encoder has no embedding for."""
        size = len(self.weights["embeddings.word_embeddings.weight"])
        found = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        if any(not ids or max(ids) >= size for ids in found):
            raise MethodError("The encoder and its tokenizer do not belong together.")
        return found

    def pooled(self, texts: Sequence[str]) -> Array:
        """Mean of the last hidden states over a text's tokens, shape (n_texts, dimensions)."""
        rows = [self._hidden(ids).mean(axis=0) for ids in self.tokens(texts)]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.dimensions)

    @classmethod
    def _checked(cls, shape: EncoderShape, found: Mapping[str, NDArray[Any]], vocabulary: bytes) -> Self:
        d = tensor(found, "embeddings.LayerNorm.weight", (None,)).shape[0]
        if d % shape.heads:
            raise MethodError(f"An encoder of {d} dimensions cannot have {shape.heads} heads.")
        weights = {
            name: np.ascontiguousarray(tensor(found, name, expected), dtype=np.float32)
            for name, expected in weight_names(found, d).items()
        }
        if len(weights["embeddings.position_embeddings.weight"]) < shape.max_tokens:
            raise MethodError(f"The encoder has fewer than {shape.max_tokens} positions.")
        return cls(shape, weights, vocabulary)

    @cached_property
    def _layers(self) -> list[list[Array]]:
        """Every layer's matrices as the forward pass multiplies them: query, key and value side by side."""
        w, layers = self.weights, []
        for i in range(sum(name.endswith("intermediate.dense.bias") for name in w)):
            at = f"encoder.layer.{i}."
            parts = [f"{at}attention.self.{part}." for part in ("query", "key", "value")]
            layers.append(
                [
                    np.ascontiguousarray(np.concatenate([w[f"{part}weight"] for part in parts]).T),
                    np.concatenate([w[f"{part}bias"] for part in parts]),
                    *(
                        np.ascontiguousarray(w[f"{at}{name}"].T)
                        for block in ("attention.output", "intermediate", "output")
                        for part in ("dense", *(() if block == "intermediate" else ("LayerNorm",)))
                        for name in (f"{block}.{part}.weight", f"{block}.{part}.bias")
                    ),
                ]
            )
        return layers

    def _hidden(self, ids: Sequence[int]) -> Array:
        """Last hidden states, shape (n_tokens, dimensions)."""
        w, n, heads, eps = self.weights, len(ids), self.shape.heads, self.shape.eps
        x = w["embeddings.word_embeddings.weight"][list(ids)]
        x = (
            x
            + w["embeddings.position_embeddings.weight"][:n]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        x = _layer_norm(x, w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"], eps)
        scale = np.float32(1 / math.sqrt(self.dimensions // heads))
        for qkv, qkv_b, out, out_b, norm, norm_b, up, up_b, down, down_b, last, last_b in self._layers:
            q, k, v = (x @ qkv + qkv_b).reshape(n, 3, heads, -1).transpose(1, 2, 0, 3)
            weight = (q @ k.transpose(0, 2, 1)) * scale
            weight = np.exp(weight - weight.max(axis=-1, keepdims=True))
            weight /= weight.sum(axis=-1, keepdims=True)
            seen = (weight @ v).transpose(1, 0, 2).reshape(n, -1)
            x = _layer_norm(x + (seen @ out + out_b), norm, norm_b, eps)
            x = _layer_norm(x + (_gelu(x @ up + up_b) @ down + down_b), last, last_b, eps)
        return x


@dataclass(frozen=True, eq=False)
class TrainedEncoder:
    """An encoder with its head: `weight` (dimensions, n_outputs), `bias` (n_outputs,). `unit`: the pooled vector is
    scaled to unit length before the head, whose columns then are directions. `losses`: of every training step."""

    encoder: Encoder
    weight: Array
    bias: Array
    unit: bool = False
    losses: Array | None = None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Outputs, shape (n_texts, n_outputs)."""
        pooled = self.encoder.pooled(texts).astype(np.float64)
        if self.unit:
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
        return np.asarray(pooled @ self.weight.astype(np.float64) + self.bias)

    def with_outputs(self, columns: NDArray[np.intp]) -> Self:
        """The same encoder with its outputs in another order."""
        weight = np.ascontiguousarray(self.weight[:, columns])
        return replace(self, weight=weight, bias=np.ascontiguousarray(self.bias[columns]))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As tensors of an artefact."""
        losses = np.zeros(0, dtype=np.float32) if self.losses is None else self.losses
        head = {"head.weight": self.weight, "head.bias": self.bias, "losses": losses}
        return {**self.encoder.tensors(), **head}

    @classmethod
    def of(
        cls, tensors: Mapping[str, NDArray[Any]], shape: EncoderShape, outputs: int, *, unit: bool = False
    ) -> Self:
        """The trained encoder that `tensors` hold. Raises `MethodError`."""
        encoder = Encoder.of(tensors, shape)
        weight = tensor(tensors, "head.weight", (encoder.dimensions, outputs)).astype(np.float32)
        bias = tensor(tensors, "head.bias", (outputs,)).astype(np.float32)
        return cls(encoder, weight, bias, unit, tensor(tensors, "losses", (None,)))


def starting_encoder(start: str, *, max_tokens: int, truncate: str = "right") -> Encoder:
    """The encoder at `start`: a folder, or a weights id under `$CHORUS_HOME/weights`. Raises `MethodError`."""
    folder = start_folder(start, "encoder")
    return Encoder.load(folder, max_tokens=max_tokens, truncate=truncate)


def weight_names(found: Mapping[str, NDArray[Any]], d: int) -> dict[str, tuple[int | None, ...]]:
    """Names and shapes of a BERT encoder's weights, with as many layers as `found` has, of `d` dimensions."""
    names: dict[str, tuple[int | None, ...]] = {
        "embeddings.word_embeddings.weight": (None, d),
        "embeddings.position_embeddings.weight": (None, d),
        "embeddings.token_type_embeddings.weight": (None, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for i in range(sum(name.endswith("intermediate.dense.bias") for name in found)):
        at = f"encoder.layer.{i}."
        wide = tensor(found, f"{at}intermediate.dense.bias", (None,)).shape[0]
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            names |= {f"{at}attention.{part}.weight": (d, d), f"{at}attention.{part}.bias": (d,)}
        names |= {f"{at}intermediate.dense.weight": (wide, d), f"{at}intermediate.dense.bias": (wide,)}
        names |= {f"{at}output.dense.weight": (d, wide), f"{at}output.dense.bias": (d,)}
        for part in ("attention.output", "output"):
            names |= {f"{at}{part}.LayerNorm.weight": (d,), f"{at}{part}.LayerNorm.bias": (d,)}
    return names


def _layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(eps))
    return np.asarray(centred / spread * weight + bias, dtype=np.float32)


def _gelu(x: Array) -> Array:
    """x·Φ(x), Φ by the rational approximation 7.1.26 of Abramowitz and Stegun: within 1e-7, which is float32."""
    size = np.abs(x) * np.float32(1 / math.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = t * np.float32(1.061405429) - np.float32(1.453152027)
    for coefficient in (1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(coefficient)
    tail = np.float32(0.5) * series * t * np.exp(-size * size)
    return np.asarray(x * np.where(x > 0, 1 - tail, tail), dtype=np.float32)
