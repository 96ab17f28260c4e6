"""Texts that are bound to a JSON schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines.grammar import schema_of
from engines.host import FusionSpec, Host
from ensembles.spans.cool_fusion import CoolFusion
from ensembles.tokens.abe import ABE
from ensembles.tokens.cp_delta import CPDelta
from ensembles.tokens.gac import GaC
from ensembles.tokens.spec_ensemble import SpecEnsemble
from ensembles.tokens.unite import UniTE
from protocol.errors import BadRequest
from tests.engines.table_engine import answers, host_of

PIECES = [
    "<eos>",
    "{",
    "}",
    '"',
    ":",
    ",",
    "Ġ",
    "a",
    "b",
    "1",
    "2",
    "0",
    "-",
    "t",
    "r",
    "u",
    "e",
    "<pad>",
    "[",
    "]",
]
ONE = {piece: i for i, piece in enumerate(PIECES)}
TWO = {piece: i for i, piece in enumerate([*reversed(PIECES), '{"', '":', '"a"', "true", "Ċ"])}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 12, True]}, "b": {"type": "string", "maxLength": 4}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PROMPTS = [(1 + i % 7, 1 + i % 5, 1 + i % 3) for i in range(12)]
METHODS = {"gac": GaC(), "unite": UniTE(top_k=2), "cp-delta": CPDelta(), "spec": SpecEnsemble(drafts=2)}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two members with vocabularies of their own, in every kind of fusion."""
    fusions = [FusionSpec(name, ("x", "y"), (0.5, 0.5), method) for name, method in METHODS.items()]
    fusions.append(FusionSpec("abe", ("x", "y"), (0.5, 0.5), ABE(2)))
    fusions.append(FusionSpec("cool", ("x", "y"), (0.5, 0.5), CoolFusion(), feedback="retail"))
    host, _ = host_of(tmp_path_factory.mktemp("json"), {"x": (ONE, 1), "y": (TWO, 2)}, fusions)
    yield host
    host.stop()


@pytest.mark.parametrize("model", ["x", "y", *METHODS])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_text_is_what_the_schema_allows(host: Host, model: str, temperature: float) -> None:
    """Models that write noise write JSON of the schema, alone and fused, greedy and sampled."""
    grammar = host.grammar(model, SCHEMA, strict=True)
    texts = answers(host, model, PROMPTS, grammar=grammar, temperature=temperature, max_tokens=60)
    assert len(set(texts)) > 1
    for text in texts:
        assert text.endswith("."), "it ends where it is complete"
        value = json.loads(text[:-1])
        assert value.keys() == {"a", "b"}
        assert value["a"] in (1, 12, True)
        assert len(value["b"]) <= 4


def test_drafts_change_nothing(host: Host) -> None:
    """Greedy texts of members that draft are those of the plain fusion, under a grammar too."""
    plain, drafted = (
        answers(host, m, PROMPTS, grammar=host.grammar(m, SCHEMA, strict=True)) for m in ("gac", "spec")
    )
    assert plain == drafted


def test_what_only_one_member_has_may_come(host: Host) -> None:
    """A symbol that the other member writes in several tokens is among what may come."""
    grammar = host.grammar("gac", SCHEMA, strict=True)
    first = answers(host, "gac", PROMPTS, grammar=grammar, temperature=1.0, max_tokens=1)
    assert '{"' not in first, "the main member's tokens bound the answer"
    biased = answers(host, "gac", PROMPTS, (0.0, 1.0), grammar=grammar, temperature=1.0)
    assert all(json.loads(text[:-1]) for text in biased if text.endswith("."))


def test_who_cannot(host: Host) -> None:
    """A search and a method in spans say so by the field's name."""
    assert "response_format" in host.cannot("abe")
    assert "response_format" in host.cannot("cool")
    assert "response_format" not in host.cannot("gac")


def _format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}


def test_formats() -> None:
    """Text is nothing special; an object is any object; a schema is taken as it is, strictly where asked."""
    assert schema_of(None) is None
    assert schema_of({"type": "text"}) is None
    assert schema_of({"type": "json_object"}) == ({"type": "object"}, False)
    assert schema_of(_format(SCHEMA, strict=True)) == (SCHEMA, True)


@pytest.mark.parametrize(
    "wanted",
    [
        "json",
        {"type": "xml"},
        {"type": "json_schema"},
        _format([]),
        _format({"type": "integer", "multipleOf": 3}),
        _format({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}),
        _format({"anyOf": [{"not": {}}]}),
        _format({"type": "string", "pattern": "a+", "maxLength": 3}),
        _format({"type": "string", "description": "x" * 40_000}),
    ],
)
def test_what_is_not_enforced_is_refused(wanted: Any) -> None:
    """A format or keyword we cannot keep is a 400 that names the field."""
    with pytest.raises(BadRequest) as caught:
        schema_of(wanted)
    assert caught.value.param == "response_format"


def test_a_schema_that_is_none(host: Host) -> None:
    """What the compiler does not take is the caller's fault."""
    with pytest.raises(BadRequest, match="cannot be used") as caught:
        host.grammar("gac", {"type": "objekt"}, strict=False)
    assert caught.value.param == "response_format"
