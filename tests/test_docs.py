"""What is generated is current."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import orjson
import pytest
import yaml

from gateway.cli.catalogue import TAXONOMY, as_markdown
from gateway.cli.inspect import schema_json, settings_markdown
from gateway.telemetry import Telemetry
from protocol import errors
from protocol.chat import Options
from protocol.methods import methods

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


def test_methods_page_is_current() -> None:
    """docs/METHODS.md is what `chorus methods --markdown` prints; `make docs` writes it."""
    assert (ROOT / "docs" / "METHODS.md").read_text() == as_markdown(methods())


def test_settings_schema_is_current() -> None:
    """config/settings.schema.json is what `chorus schema` prints; `make docs` writes it."""
    assert (ROOT / "config" / "settings.schema.json").read_text() == schema_json()


def test_settings_schema_is_a_schema() -> None:
    """The schema itself is valid JSON Schema."""
    jsonschema.Draft202012Validator.check_schema(orjson.loads(schema_json()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_fit_the_schema(path: Path) -> None:
    """Every config that is shipped is valid by the published schema."""
    jsonschema.validate(yaml.safe_load(path.read_text()), orjson.loads(schema_json()))


def test_the_schema_refuses_unknown_keys() -> None:
    """Editors underline a misspelt key, as the start would refuse it."""
    with pytest.raises(jsonschema.ValidationError, match="prot"):
        jsonschema.validate({"models": {}, "server": {"prot": 1}}, orjson.loads(schema_json()))


def test_every_kind_of_method_is_explained() -> None:
    """The catalogue has words for each taxonomy code in use."""
    assert {method.taxonomy for method in methods()} <= set(TAXONOMY)


def test_settings_page_is_current() -> None:
    """docs/settings.md is what `chorus schema --markdown` prints; `make docs` writes it."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings_markdown()


def test_every_settings_section_has_its_table() -> None:
    """A settings type that is added without a place in the page fails here."""
    page = settings_markdown()
    for section in orjson.loads(schema_json())["$defs"].values():
        assert all(f"| `{key}` |" in page for key in section.get("properties", ()))


def test_every_error_code_is_documented() -> None:
    """docs/api.md names the code of every error class that crosses HTTP."""
    page = (ROOT / "docs" / "api.md").read_text()
    classes = [getattr(errors, name) for name in errors.__all__]
    codes = {kind.code for kind in classes if isinstance(kind.code, str)}
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_every_request_option_is_documented() -> None:
    """docs/api.md names every field of the `chorus` object."""
    page = (ROOT / "docs" / "api.md").read_text()
    assert all(f"| `{field}` |" in page for field in Options.__dataclass_fields__)


def test_every_metric_is_documented() -> None:
    """docs/api.md names every metric that a gateway exposes."""
    page = (ROOT / "docs" / "api.md").read_text()
    exposed = {family.name for family in Telemetry(()).registry.collect()}
    assert {name for name in exposed if f"`{name}" not in page} == set()


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file that exists."""
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} → {target}"
