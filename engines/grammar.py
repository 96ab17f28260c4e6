"""Answers that are JSON: which symbols may come next, so that the text stays one that a schema allows.

The grammar is matched on bytes (xgrammar, which vLLM brings), with the symbols of the team's union as its tokens. So
every symbol of every member that goes on with allowed text may come, where a mask over one member's tokens would rule
out what only the others have; and a model alone is a team of one. The end of the answer is allowed exactly where the
text is complete.

What the grammar cannot enforce is refused and never dropped: `KEYWORDS` lists what it can."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from protocol.errors import BadRequest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Grammar", "GrammarCompiler", "Reader", "schema_of"]

KEYWORDS = frozenset(
    {
        "type", "enum", "const", "anyOf", "$ref", "$defs", "definitions",
        "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern",
        "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
        "$schema", "$id", "$comment",
    }
)  # fmt: skip
"""Keywords of JSON Schema that are enforced, or say nothing of what is allowed."""
NAMED = ("properties", "$defs", "definitions")
"""Keywords whose values are schemas by name."""
MAX_SCHEMA_BYTES = 32 * 1024
MAX_WHITESPACE = 16
"""Characters between two parts of the text: weak models go on with white space for ever."""
CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled schema, and what it was compiled from; any number of requests may read by it at once."""

    schema: bytes
    strict: bool
    compiled: Any


class GrammarCompiler:
    """Compiles schemas for the symbols of one union, of which `end` ends the answer. Safe in any thread."""

    def __init__(self, symbols: Sequence[bytes], end: int) -> None:
        self._symbols, self._end = symbols, end
        self._lock = threading.Lock()
        self._compiler: Any = None

    def compile(self, schema: Mapping[str, Any], *, strict: bool) -> Grammar:
        """For `strict`, objects have no properties but those named. About a second for a first schema over two
        vocabularies; kept for the next time. Raises `BadRequest` for one that is no schema."""
        import xgrammar

        with self._lock:
            if self._compiler is None:
                info = xgrammar.TokenizerInfo(
                    list(self._symbols),
                    xgrammar.VocabType.RAW,
                    vocab_size=len(self._symbols),
                    stop_token_ids=[self._end],
                )
                self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE_BYTES)
        try:
            given = orjson.dumps(schema)
            compiled = self._compiler.compile_json_schema(
                given.decode(), strict_mode=strict, max_whitespace_cnt=MAX_WHITESPACE
            )
            return Grammar(given, strict, compiled)
        except (RuntimeError, ValueError) as error:
            reason = str(error).rpartition(": ")[2].strip()[:200]
            raise _fault(f"has a schema that cannot be used: {reason}") from None


class Reader:
    """Reads one text as it is written, and says what may come next."""

    def __init__(self, grammar: Grammar, size: int) -> None:
        import xgrammar

        self._size = size
        self._matcher = xgrammar.GrammarMatcher(grammar.compiled)
        self._mask = xgrammar.allocate_token_bitmask(1, size)
        self._allowed: Tensor | None = None

    def allowed(self) -> Tensor:
        """The symbols that may come next, bool of shape (size,)."""
        import torch

        if self._allowed is None:
            self._matcher.fill_next_token_bitmask(self._mask)
            bits = torch.arange(32, dtype=torch.int32)
            self._allowed = ((self._mask[0][:, None] >> bits) & 1).bool().flatten()[: self._size]
        return self._allowed

    def accept(self, symbol: int) -> None:
        """Go on behind a symbol that was allowed."""
        self._matcher.accept_token(symbol)
        self._allowed = None


def schema_of(response_format: Any) -> tuple[Mapping[str, Any], bool] | None:
    """The schema that a request's `response_format` wants, and whether strictly; None for plain text. Raises
    `BadRequest`."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}, False
    if kind != "json_schema":
        raise _fault("must be an object whose 'type' is text, json_object or json_schema")
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise _fault("has no 'json_schema.schema' that is an object")
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise _fault(f"has a schema of more than {MAX_SCHEMA_BYTES} bytes")
    _check(schema)
    return schema, bool(named.get("strict"))


def _check(schema: Any) -> None:
    """Raises `BadRequest` at the first keyword that would not be enforced."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key not in KEYWORDS:
            raise _fault(f"has a schema with {str(key)[:64]!r}, which is not enforced here")
        if key in NAMED and isinstance(value, Mapping):
            for part in value.values():
                _check(part)
        elif key in ("anyOf", "prefixItems") and isinstance(value, list):
            for part in value:
                _check(part)
        elif key in ("items", "additionalProperties"):
            _check(value)
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        raise _fault("has a schema with a 'pattern' beside a length, of which only one is enforced here")


def _fault(what: str) -> BadRequest:
    return BadRequest(f"'response_format' {what}.", param="response_format")
