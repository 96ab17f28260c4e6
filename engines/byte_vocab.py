"""What every token id of a model emits, as bytes: the common ground on which different vocabularies meet.

Strings are not that ground: byte-level BPE writes its bytes as other characters (`Ġ` is a space, and `Ä` is
not an `Ä`), SentencePiece writes a space as `▁` and rare bytes as `<0xHH>`, and decoding one id at a time
turns every piece of a multi-byte character into U+FFFD. So ids are read here once, by the rules of their
family, and never decoded again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

__all__ = ["ByteVocab", "Kind", "Unencodable"]

END_TOKENS = frozenset(
    {
        "<|endoftext|>",
        "<|im_end|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|end|>",
        "<eos>",
        "<end_of_turn>",
        "</s>",
    }
)
"""Control tokens that end an answer, beside those the model's generation config names."""

BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class Kind(IntEnum):
    """What an id is: text, a SentencePiece byte, a user-defined piece (emits text all the same), a control,
    or an end."""

    TEXT = 0
    BYTE = 1
    USER_TEXT = 2
    CONTROL = 3
    EOS = 4


class Unencodable(ValueError):
    """Bytes that no sequence of the vocabulary's ids emits."""


@dataclass(frozen=True, slots=True)
class ByteVocab:
    """`emits[id]` is what the id adds to the text (empty for controls and ends), `kind[id]` its `Kind`,
    `ids[x]` every id that emits exactly x, the one to feed back first; `eos` the ids that end an answer,
    `bos` the id a prompt must start with."""

    emits: tuple[bytes, ...]
    kind: tuple[Kind, ...]
    ids: Mapping[bytes, tuple[int, ...]]
    eos: frozenset[int]
    bos: int | None
    missing_bytes: bytes
    """Single bytes without an id of their own: text holding one may not be encodable."""
    _tokenizer: Tokenizer = field(repr=False)
    _plain: Tokenizer = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> ByteVocab:
        """Read `tokenizer.json` and the generation config of a Hugging Face folder."""
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        return cls.parse(text, stop_ids=_generation_eos(folder), bos=_bos(folder, json.loads(text)))

    @classmethod
    def parse(cls, text: str, *, stop_ids: Sequence[int] = (), bos: int | None = None) -> ByteVocab:
        """From the text of a `tokenizer.json` of a BPE model, byte-level or with SentencePiece
        conventions."""
        spec = json.loads(text)
        strings: dict[int, str] = {i: s for s, i in spec["model"]["vocab"].items()}
        added = {token["id"]: token for token in spec.get("added_tokens") or ()}
        strings.update((i, token["content"]) for i, token in added.items())
        byte_level = "ByteLevel" in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        size = max(strings) + 1
        emits, kinds = [b""] * size, [Kind.CONTROL] * size
        eos = set(stop_ids)
        for i, string in strings.items():
            token = added.get(i)
            if token is not None and token["special"]:
                if string in END_TOKENS:
                    eos.add(i)
            elif byte_level:
                emits[i] = string.encode() if token is not None else _byte_level(string)
                kinds[i] = Kind.TEXT if token is None else Kind.USER_TEXT
            elif match := BYTE_PIECE.match(string):
                emits[i], kinds[i] = bytes([int(match[1], 16)]), Kind.BYTE
            else:
                emits[i] = string.replace("▁", " ").encode()
                kinds[i] = Kind.TEXT if token is None else Kind.USER_TEXT
        for i in eos:
            emits[i], kinds[i] = b"", Kind.EOS
        ids: dict[bytes, list[int]] = {}
        # Literal pieces before `<0xHH>` twins: what a model was trained to read is fed back.
        for i in sorted(range(size), key=lambda i: (kinds[i] is Kind.BYTE, i)):
            if emits[i]:
                ids.setdefault(emits[i], []).append(i)
        # Controls inside a text must stay text, so the tokenizer that encodes answers does not know them.
        spec["added_tokens"] = [token for i, token in added.items() if kinds[i] < Kind.CONTROL]
        return cls(
            tuple(emits),
            tuple(kinds),
            {x: tuple(found) for x, found in ids.items()},
            frozenset(eos),
            bos,
            bytes(b for b in range(256) if bytes([b]) not in ids),
            Tokenizer.from_str(text),
            Tokenizer.from_str(json.dumps(spec)),
        )

    def __len__(self) -> int:
        return len(self.emits)

    def text_of(self, ids: Sequence[int]) -> bytes:
        """The bytes that `ids` emit, controls nothing."""
        return b"".join(self.emits[i] for i in ids)

    def encode_prompt(self, text: str) -> list[int]:
        """A rendered prompt to ids, its control tokens recognised, `bos` in front where the model needs
        it."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def encode(self, data: bytes) -> list[int]:
        """Ids emitting exactly `data`: its own id if there is one, else the model's own segmentation, with no
        merge into what came before. Raises `Unencodable`."""
        if not data:
            return []
        if (exact := self.ids.get(data)) is not None:
            return [exact[0]]
        out: list[int] = []
        for text, raw in _utf8_runs(data):
            ids = self._plain.encode(text, add_special_tokens=False).ids if text else []
            if self.text_of(ids) != text.encode():
                ids = self._bytewise(text.encode())
            out += [*ids, *self._bytewise(raw)]
        return out

    def _bytewise(self, data: bytes) -> list[int]:
        """One id a byte."""
        out = []
        for i in range(len(data)):
            found = self.ids.get(data[i : i + 1])
            if found is None:
                raise Unencodable(f"no id emits the byte 0x{data[i]:02x}")
            out.append(found[0])
        return out


def _utf8_runs(data: bytes) -> list[tuple[str, bytes]]:
    """Cut `data` into pairs of a valid UTF-8 run and the bytes after it that are not valid UTF-8."""
    runs, rest = [], data
    while rest:
        try:
            runs.append((rest.decode(), b""))
            break
        except UnicodeDecodeError as error:
            runs.append((rest[: error.start].decode(), rest[error.start : error.end]))
            rest = rest[error.end :]
    return runs


@lru_cache(maxsize=1)
def _bytes_of_characters() -> Mapping[str, int]:
    """GPT-2's reversible byte ↔ character table: printable bytes stand for themselves, the others for U+0100
    onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def _byte_level(string: str) -> bytes:
    table = _bytes_of_characters()
    return bytes(table[character] for character in string)


def _generation_eos(folder: Path) -> list[int]:
    eos: Any = None
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if eos is None and path.is_file():
            eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return [eos] if isinstance(eos, int) else list(eos or ())


def _bos(folder: Path, spec: Mapping[str, Any]) -> int | None:
    """The id every prompt starts with: that of a `<bos>`-like token which is not also a turn mark of a chat
    template."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    token = config.get("bos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if config.get("add_bos_token") is False or content not in ("<bos>", "<s>", "<|begin_of_text|>"):
        return None
    known = {added["content"]: added["id"] for added in spec.get("added_tokens") or ()}
    found = known.get(content, spec["model"]["vocab"].get(content))
    return None if found is None else int(found)
