"""The Grafana dashboards and Prometheus rules: generated, current, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.grafana.generate import DASHBOARDS, FOLDER, OURS, WIDTH, as_json
from engines.metrics import EngineNumbers, Steps, exposition
from gateway.decisions import HOW
from gateway.ledger.rolling_up import RollingUp
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.telemetry import Telemetry
from protocol import errors

ROOT = Path(__file__).parents[2]
RULES = FOLDER.parent / "rules.yaml"
RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yaml"


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboards and rules."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            yield from panel.queries.values()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def exposed() -> dict[str, set[str]]:
    """The names of all series that a gateway has, with their labels."""
    found = {}
    for family in Telemetry(()).registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in suffixes:
            found[family.name + suffix] = {"le"} if suffix == "_bucket" else set()
    return found


def engine_series() -> set[str]:
    """The names of all series that an engine host has, or will have when something has happened."""
    text = exposition({"one": EngineNumbers(0, 0, 0.0, 1)}, ["duet"], Steps())
    return set(re.findall(r"^(?:# TYPE )?(chorus_\w+)", text, re.MULTILINE))


def own_series() -> set[str]:
    """The names of all series of the supervisor's own."""
    text = RollingUp(lambda: SqliteLedger(Path("none")), 1).exposition().decode()
    return set(re.findall(r"^(chorus_\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_committed_dashboards_are_current(dashboard: object) -> None:
    """The JSON files are what `python deploy/grafana/generate.py` writes."""
    path = FOLDER / f"{dashboard.uid}.json"  # type: ignore[attr-defined]
    assert path.read_text() == as_json(dashboard)  # type: ignore[arg-type]


def test_no_dashboard_is_left_over() -> None:
    """Every file in the folder has a source."""
    assert {path.stem for path in FOLDER.iterdir()} == {dashboard.uid for dashboard in DASHBOARDS}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_panels_do_not_overlap(dashboard: object) -> None:
    """Each cell of Grafana's grid belongs to one panel at most, and none is outside of it."""
    taken = set()
    for panel in json.loads(as_json(dashboard))["panels"]:  # type: ignore[arg-type]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= WIDTH
        taken |= cells


def test_every_metric_used_exists() -> None:
    """Panels and alerts ask for nothing that a gateway does not expose or a rule does not record."""
    recorded = set(re.findall(r"- record: (\S+)", RULES.read_text()))
    known = set(exposed()) | engine_series() | own_series() | recorded
    for expr in expressions():
        used = set(re.findall(r"(?<![\w:])(?:\w+:)?chorus[_:][\w:]+", expr))
        assert used <= known, expr


def test_every_metric_is_shown() -> None:
    """A metric that no panel and no rule looks at is seen by nobody."""
    shown = " ".join(expressions())
    families = {family.name for family in Telemetry(()).registry.collect()} | engine_series() | own_series()
    unseen = {name for name in families if name not in shown}
    assert unseen == set()


def test_faults_of_ours_are_told_from_the_callers() -> None:
    """The pattern of failures matches the code of every error with a status of 500 or more, and no other; the
    rules use the same."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, errors.ChorusError)]
    for kind in kinds:
        outcome = kind.code or kind.type
        assert bool(re.fullmatch(OURS, outcome)) == (kind.status >= 500 and kind.__name__ != "NotCached"), (
            outcome
        )
    assert RULES.read_text().count(f'outcome=~"{OURS}"') == 4


def test_ways_to_decide_are_known() -> None:
    """Expressions name only values of `how` that decisions have."""
    named = {
        word
        for expr in expressions()
        for value in re.findall(r'how=~?"([^"]+)"', expr)
        for word in value.split("|")
    }
    assert named == set(HOW) - {"other"}


@pytest.mark.requires("promtool")
def test_rules_are_right() -> None:
    """Promtool finds no fault in the rules; each alert fires in its incident and none in a healthy day."""
    for command in (["check", "rules", "--lint=all", "--lint-fatal", RULES], ["test", "rules", RULES_TEST]):
        done = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_documented() -> None:
    """Each alert has an incident in the rules' test and an entry in docs/deploy/alerts.md."""
    page = (ROOT / "docs" / "deploy" / "alerts.md").read_text()
    incidents = yaml.safe_load(RULES_TEST.read_text())["tests"]
    firing = {
        case["alertname"] for test in incidents for case in test["alert_rule_test"] if case.get("exp_alerts")
    }
    alerts = set(re.findall(r"- alert: (\S+)", RULES.read_text()))
    assert alerts == firing
    assert {name for name in alerts if f"`{name}`" not in page} == set()


@pytest.mark.requires("promtool")
def test_prometheus_config_is_right(tmp_path: Path) -> None:
    """The scrape config of docker-compose.yml is one that Prometheus takes."""
    config = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    copy = tmp_path / "prometheus.yml"
    copy.write_text(config.replace("/etc/prometheus/rules.yaml", str(RULES)))
    subprocess.run(["promtool", "check", "config", str(copy)], capture_output=True, check=True)
