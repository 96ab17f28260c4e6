"""What scales engine hosts: schemas, and metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.test_chart import VERSIONS, rendered
from tests.deploy.test_dashboards import engine_series

FOLDER = Path(__file__).parents[2] / "deploy" / "scaling"


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_the_autoscaler(version: str) -> None:
    """Valid by Kubernetes' own schemas, no unknown field; KEDA's embedded behaviour is of the same kind."""
    found = objects("hpa.yaml")
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)
    (scaled,) = objects("keda.yaml")
    embedded = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert embedded == found[0]["spec"]["behavior"]
    kubernetes_validate.validate(
        {**found[0], "spec": {**found[0]["spec"], "behavior": embedded}}, version, strict=True
    )


def test_they_scale_what_the_chart_makes() -> None:
    """Both name the StatefulSet of a release called `chorus`."""
    made = {
        (one["apiVersion"], one["kind"], one["metadata"]["name"])
        for one in rendered({"engines": {"enabled": True}}, name="chorus")
    }
    for one in (objects("hpa.yaml")[0], objects("keda.yaml")[0]):
        target = one["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"], target["name"]) in made


@pytest.mark.requires("promtool")
def test_they_ask_for_what_exists(tmp_path: Path) -> None:
    """Each metric is one that an engine host exposes, and each query is PromQL."""
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert set(re.findall(r"chorus_\w+", text)) <= engine_series()
    (scaled,) = objects("keda.yaml")
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    rules = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
