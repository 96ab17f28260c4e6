"""What the shared helpers in tests/conftest.py do with a test whose needs are not met."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

NEEDY = """
import pytest

@pytest.mark.requires("data")
def test_with_mark():
    assert True

def test_halfway():
    from tests.conftest import requires
    requires("data")

@pytest.mark.models
def test_with_models():
    assert True
"""


@pytest.fixture
def needy(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.Pytester:
    """A suite of three tests on a machine that has neither data nor weights."""
    root = Path(__file__).parents[1]
    pytester.makeconftest((root / "tests" / "conftest.py").read_text())
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        pythonpath = ["{root}"]
        asyncio_default_fixture_loop_scope = "function"
        markers = ["models", "requires(*things)"]
        """
    )
    pytester.makepyfile(NEEDY)
    monkeypatch.delenv("CHORUS_DATA", raising=False)
    monkeypatch.delenv("CHORUS_REQUIRE_ALL", raising=False)
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    return pytester


def test_missing_things_skip_with_the_remedy(needy: pytest.Pytester) -> None:
    """A test that cannot run here is skipped, and the reason says how to make it run."""
    result = needy.runpytest("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(
        ["*needs data: set CHORUS_DATA*", "*needs weights:smollm2*: python -m engines.weights*"],
        consecutive=False,
    )


def test_nothing_is_skipped_in_ci(needy: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``CHORUS_REQUIRE_ALL=1`` the same tests fail, with the same words."""
    monkeypatch.setenv("CHORUS_REQUIRE_ALL", "1")
    result = needy.runpytest()
    outcomes = result.parseoutcomes()
    # A mark fails in the test's setup, which pytest calls an error.
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 3
    assert "passed" not in outcomes


def test_things_that_are_there_do_not_stop_a_test(
    needy: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A need that is met changes nothing."""
    monkeypatch.setenv("CHORUS_DATA", str(needy.path))
    needy.runpytest("-k", "mark or halfway").assert_outcomes(passed=2)
