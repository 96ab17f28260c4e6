"""The settings file: what it accepts, and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import SettingsError
from protocol.settings import Settings, load_settings, parse_settings

BASE = """
models:
  small: {engine: {weights: w}}
  large: {openai: {base_url: "https://api.example.com/v1", model: m, api_key: os.environ/TEST_KEY}}
  embed: {embedder: {weights: e}}
"""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-canary")


def fault(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text)
    return caught.value.message


def test_defaults_are_filled_in() -> None:
    """A minimal file is a whole configuration; one deployment may be written without a list."""
    settings = parse_settings(BASE)
    assert (settings.server.port, settings.models["small"].engine.max_model_len) == (8080, 2048)
    assert [d.model for d in settings.models["large"].openai] == ["m"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modles: {}", "modles: unknown key; did you mean 'models'?"),
        (BASE + "server: {prot: 1}", "server.prot: unknown key; did you mean 'port'?"),
        ("models: {a: {engin: {weights: w}}}", "models.a.engin: unknown key; did you mean 'engine'?"),
        (
            "models: {a: {engine: {weigths: w}}}",
            "models.a.engine.weigths: unknown key; did you mean 'weights'?",
        ),
        (
            "models: {engine: {engine: {weights: w, dtyp: x}}}",
            "models.engine.engine.dtyp: unknown key; did you mean 'dtype'?",
        ),
        (
            "models: {a: {openai: [{base_url: 'http://x/v1', model: m, timeout: 3}]}}",
            "models.a.openai.0.timeout: unknown key; did you mean 'timeout_s'?",
        ),
        ("models: {a: {engine: {weights: w, zzz: 1}}}", "known keys: weights, dtype"),
        (
            BASE + "strategies: {s: {cascade: {stages: [small, large], artefact: a, treshold: 1}}}",
            "s.cascade.treshold: unknown",
        ),
    ],
)
def test_unknown_keys_get_a_hint(text: str, told: str) -> None:
    """An unknown key is reported with its path and the nearest known one, at every depth."""
    assert told in fault(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "models: {a: {engine: {weights: w, dtype: int3}}}",
            "models.a.engine.dtype: must be 'float32'",
        ),
        (
            BASE + "server: {port: 70000}",
            "server.port: must be less than or equal to 65535 (found 70000)",
        ),
        ("models: {a: {}}", "models.a: give exactly one of engine, openai, hosted, embedder (found none)"),
        ("models: {a: {engine: {weights: w}, embedder: {weights: w}}}", "found engine and embedder"),
        ("models: {a: {openai: {base_url: 'ftp://x', model: m}}}", "models.a.openai.base_url: must match"),
        ("models: {a: {openai: {base_url: 'http://[a]/v1', model: m}}}", "not a URL"),
        ("models: {a: {openai: {base_url: 'http://x:port/v1', model: m}}}", "not a URL"),
        ("models: {a: {openai: {base_url: 'http://x/v1', model: m, proxy: 'http://[a]'}}}", "not a URL"),
        ("models: {}", "models: needs at least 1"),
        ("models: {a: {openai: {base_url: 'http://x/v1'}}}", "models.a.openai.model: is required"),
        (BASE + "server: {cors: {origins: 'https://a'}}", "server.cors.origins: must be a list (found"),
        (BASE + "server: 3", "server: must be a mapping of keys to values (found 3)"),
        (BASE + "keys: {required: maybe}", "keys.required: must be true or false"),
        (
            BASE + "limits: {everyone: {budgets_usd: {fortnight: 3}}}",
            "everyone.budgets_usd.fortnight: must be 'day'",
        ),
        ("models: &a {b: *a}", "an alias within what it stands for"),
        ("[]", "must be a mapping"),
        ("models: {a: [", "not valid YAML"),
        (BASE + "strategies: {small: {aggregate: {members: [large]}}}", "both a model and a strategy"),
        (BASE + "strategies: {s: {aggregate: {members: [smal]}}}", "no 'smal'; did you mean 'small'?"),
        (BASE + "strategies: {s: {aggregate: {members: [embed]}}}", "no 'embed'"),
        (BASE + "strategies: {s: {cascade: {stages: [small], artefact: a}}}", "strategies.s.cascade.stages"),
        (BASE + "strategies: {s: {fuse: {members: {large: 1}}}}", "engine models: small"),
        (BASE + "strategies: {s: {fuse: {members: {small: 0}}}}", "at least one weight"),
        (BASE + "strategies: {s: {route: {artefact: a, embedder: x, default: small}}}", "no model 'x'"),
        (BASE + "strategies: {s: {}}", "give exactly one of route, cascade, fuse, aggregate"),
    ],
)
def test_bad_values_name_path_and_remedy(text: str, told: str) -> None:
    """A bad value stops the start with its path, what was found and what is accepted."""
    assert told in fault(text)


def test_circles_are_refused() -> None:
    """Strategies that ask each other in a circle stop the start."""
    told = fault(
        BASE + "strategies: {s: {aggregate: {members: [t]}}, t: {cascade: {stages: [small, s], artefact: a}}}"
    )
    assert "s → t → s" in told


def test_all_faults_are_reported_at_once() -> None:
    """Two faults are two lines."""
    told = fault("models: {a: {engine: {weights: w, dtype: x, kv_cache_gib: -1}}}")
    assert "2 fault(s)" in told
    assert "dtype" in told
    assert "kv_cache_gib" in told


def test_a_fault_of_a_part_is_no_fault_of_the_whole() -> None:
    """A deployment that was refused does not count as none."""
    assert "1 fault(s)" in fault("models: {a: {openai: {base_url: 'http://x/v1'}}}")


def test_faults_name_their_line() -> None:
    """A fault tells the line of its key; what is missing, the line of the section that lacks it."""
    text = "models:\n  a:\n    openai:\n    - base_url: http://x/v1\n      modle: m\n"
    assert fault(text).splitlines()[1:] == [
        "  line 4: models.a.openai.0.model: is required",
        "  line 5: models.a.openai.0.modle: unknown key; did you mean 'model'?",
    ]


def test_a_key_that_stands_twice_is_refused() -> None:
    """YAML would silently drop the first of two models of one name; both lines are told, not what they hold."""
    told = fault("models:\n  a: {engine: {weights: w}}\n  a: {engine: {weights: sk-canary}}\n")
    assert "line 3: models.a: stands here again, after line 2" in told
    assert "canary" not in told
    merged = "models:\n  a: &a {engine: {weights: w}}\n  b: {<<: *a}\n"
    assert list(parse_settings(merged).models) == ["a", "b"]


def test_an_empty_section_is_none() -> None:
    """A section whose keys are all commented out leaves the defaults."""
    assert parse_settings(BASE + "server:\n  # port: 1\n").server.port == 8080


def test_secrets_are_read_and_redacted() -> None:
    """`os.environ/NAME` and `${NAME}` are read; no rendering of the settings shows them."""
    settings = parse_settings(BASE + "server: {master_key: '${TEST_KEY}'}")
    assert settings.models["large"].openai[0].api_key.get_secret_value() == "sk-canary"
    assert settings.server.master_key.get_secret_value() == "sk-canary"
    assert "canary" not in str(settings.redacted()) + repr(settings)
    assert settings.redacted()["server"]["master_key"] == "**********"


def test_a_missing_secret_names_its_variable() -> None:
    """Every variable that is not set is named with the path that wants it."""
    told = fault(BASE.replace("TEST_KEY", "NO_SUCH_KEY_HERE") + "server: {master_key: '${NOR_THIS}'}")
    assert "models.large.openai.api_key" in told
    assert "NO_SUCH_KEY_HERE" in told
    assert "server.master_key: the environment variable NOR_THIS" in told


def test_a_wrong_secret_is_not_shown() -> None:
    """A key of the wrong type is reported without its value."""
    assert "12345" not in fault("models: {a: {openai: {base_url: 'http://x/v1', model: m, api_key: 12345}}}")


def test_artefacts_are_relative_to_the_file(tmp_path: Path) -> None:
    """Artefact paths are resolved against the file's folder, wherever the process runs."""
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "strategies: {s: {cascade: {stages: [small, large], artefact: art/x}}}")
    assert load_settings(path).strategies["s"].cascade.artefact == (tmp_path / "art/x").resolve()
    path.write_text(
        "models: {a: {engine: {weights: w}}}\n"
        "strategies: {s: {fuse: {members: {a: 1}, artefacts: {reward: art/x, other: /y}}}}"
    )
    fuse = load_settings(path).strategies["s"].fuse
    assert fuse is not None
    assert fuse.artefacts == {"reward": (tmp_path / "art/x").resolve(), "other": Path("/y")}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that cannot be read is an error of the settings, with its path."""
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


def test_settings_are_frozen() -> None:
    """Nothing changes the settings after the start."""
    settings = parse_settings(BASE)
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1
    assert isinstance(settings, Settings)


@pytest.mark.parametrize("fallbacks", ["[nope]", "[a]", "[e]"])
def test_fallbacks_are_other_models_that_answer(fallbacks: str) -> None:
    """A fallback is a configured model, not the model itself, and none that only embeds."""
    models = f"a: {{engine: {{weights: x}}, fallbacks: {fallbacks}}}, e: {{embedder: {{weights: x}}}}"
    with pytest.raises(SettingsError, match=r"models\.a\.fallbacks: no "):
        parse_settings(f"models: {{{models}}}")


@pytest.mark.parametrize(
    ("fields", "cap"),
    [("", 2048), (", context_length: 500", 500), (", context_length: 500, max_output_tokens: 9", 9)],
)
def test_output_cap(fields: str, cap: int) -> None:
    """The longest answer is what the settings say, else the context, else what the engine holds."""
    settings = parse_settings(f"models: {{a: {{engine: {{weights: x}}{fields}}}}}")
    assert settings.models["a"].output_cap == cap


@pytest.mark.parametrize(
    ("hosted", "told"),
    [
        ("{model: claude}", "models.a.hosted.model"),
        ("{model: anthropic/c}", "anthropic needs an api_key"),
        ("{model: bedrock/c, region: r}", "bedrock needs aws_access_key_id"),
        ("{model: bedrock/c, credentials: environment}", "bedrock needs a region"),
        ("{model: vertex_ai/g, region: r}", "vertex_ai needs vertex_project"),
        ("{model: vertex_ai/g, region: r, vertex_project: p}", "vertex_ai needs vertex_credentials"),
        ("{model: azure/g, api_key: k}", "azure needs the base_url"),
        (
            "{model: anthropic/c, api_key: k, mock_response: x}",
            "models.a.hosted.mock_response: unknown key",
        ),
        ("[]", "models.a.hosted"),
    ],
)
def test_a_hosted_model_can_sign_in(hosted: str, told: str) -> None:
    """What a provider needs is asked for at the start, not at the first call."""
    assert told in fault(f"models: {{a: {{hosted: {hosted}}}}}")


def test_a_model_may_have_both_kinds_of_deployments() -> None:
    """OpenAI-compatible ones and hosted ones; an engine stands alone."""
    both = "openai: {base_url: 'http://x/v1', model: m}, hosted: {model: anthropic/c, api_key: k}"
    assert len(parse_settings(f"models: {{a: {{{both}}}}}").models["a"].deployments) == 2
    assert "exactly one of" in fault(f"models: {{a: {{{both}, engine: {{weights: w}}}}}}")
    assert "exactly one of" in fault(
        "models: {a: {hosted: {model: x/c, api_key: k}, embedder: {weights: w}}}"
    )


def test_a_hosted_models_secrets_are_redacted() -> None:
    """Keys of every kind are shown as stars."""
    keys = "aws_access_key_id: canary1, aws_secret_access_key: canary2, aws_session_token: canary3, api_key: canary4"
    settings = parse_settings(f"models: {{a: {{hosted: {{model: bedrock/c, region: r, {keys}}}}}}}")
    assert "canary" not in str(settings.redacted()) + repr(settings)
