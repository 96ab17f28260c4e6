"""The Grafana dashboards, from one source.

    python deploy/grafana/generate.py        writes deploy/helm/chorus/files/dashboards/

They lie in the chart because Helm reads no file outside it; docker-compose.yml mounts the same folder. A test
compares the files with this source, and the metrics used here with those a gateway has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["DASHBOARDS", "FOLDER", "OURS", "Dashboard", "Panel", "as_json"]

FOLDER = Path(__file__).parents[1] / "helm" / "chorus" / "files" / "dashboards"

OURS = (
    "upstream_.*|(internal|method|server|timeout)_error|"
    "artefact_mismatch|invalid_settings|state_unavailable|deadline_exceeded"
)
"""Outcomes that are not the caller's fault (status 500 and above), as a pattern of Prometheus."""

WIDTH = 24
"""Grafana's columns."""

Unit = Literal["bytes", "currencyUSD", "percentunit", "reqps", "s", "short"]


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries`: legend → PromQL. `stat`: one large number instead of curves. `width` in Grafana's columns."""

    title: str
    about: str
    unit: Unit
    queries: dict[str, str]
    stat: bool = False
    stacked: bool = False
    width: int = 12

    @property
    def height(self) -> int:
        return 4 if self.stat else 8


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file; `uid` is its name and its address in Grafana."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, *by: str, where: str = "") -> str:
    """Events a second, added up over gateways, apart by the labels `by`."""
    return f"sum by ({', '.join(by)}) (rate({metric}{{{where}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """`part` of `whole`; 0 where there is a whole and no part, nothing where there is no whole."""
    return f"({part} or {whole} * 0) / ({whole} > 0)"


def shares(metric: str, group: str, of: str, *, where: str) -> str:
    """The share that each value of the label `of` has in its `group`."""
    parts, whole = rate(metric, group, of, where=where), rate(metric, group, where=where)
    return f"{parts} / on ({group}) group_left () ({whole} > 0)"


def quantile(q: float, histogram: str, *by: str) -> str:
    """The `q` quantile of a histogram over all gateways."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', *by, 'le')})"


def mean(histogram: str, *by: str) -> str:
    """The mean of what a histogram observed."""
    return f"{rate(f'{histogram}_sum', *by)} / ({rate(f'{histogram}_count', *by)} > 0)"


def quantiles(histogram: str) -> dict[str, str]:
    return {f"p{round(100 * q)}": quantile(q, histogram) for q in (0.5, 0.95, 0.99)}


REQUESTS = rate("chorus_requests_total")
BROKEN = rate("chorus_requests_total", where=f'outcome=~"{OURS}"')
DECISIONS = "chorus_decisions_total"


def decided(how: str, of: str) -> dict[str, str]:
    """The share of each strategy's decisions that were made so, `of` those made in any of these ways ("a|b")."""
    part = rate(DECISIONS, "strategy", where=f'how="{how}"')
    return {"{{strategy}}": share(part, rate(DECISIONS, "strategy", where=f'how=~"{of}"'))}


OVERVIEW = Dashboard(
    "chorus-overview",
    "Chorus: cost, latency and errors",
    (
        Panel("Requests", "Requests answered a second.", "reqps", {"": REQUESTS}, stat=True, width=4),
        Panel(
            "Failed",
            "Share of requests that failed through no fault of the caller.",
            "percentunit",
            {"": share(BROKEN, REQUESTS)},
            stat=True,
            width=4,
        ),
        Panel(
            "First byte, p95",
            "From a request's arrival to the first byte of its answer.",
            "s",
            {"": quantile(0.95, "chorus_response_start_seconds")},
            stat=True,
            width=4,
        ),
        Panel(
            "Spending an hour",
            "US dollars for models, at the rate of now.",
            "currencyUSD",
            {"": f"3600 * {rate('chorus_cost_usd_total')}"},
            stat=True,
            width=4,
        ),
        Panel(
            "Spent",
            "US dollars for models in the time shown.",
            "currencyUSD",
            {"": "sum(increase(chorus_cost_usd_total[$__range]))"},
            stat=True,
            width=4,
        ),
        Panel(
            "In flight",
            "Requests being answered now.",
            "short",
            {"": "sum(chorus_requests_in_flight)"},
            stat=True,
            width=4,
        ),
        Panel(
            "Requests by outcome",
            "`ok`, `cancelled` (the caller left), or an error's code.",
            "reqps",
            {"{{outcome}}": rate("chorus_requests_total", "outcome")},
            stacked=True,
        ),
        Panel(
            "Failed by what was asked for",
            "Share that failed through no fault of the caller.",
            "percentunit",
            {
                "{{requested_model}}": share(
                    rate("chorus_requests_total", "requested_model", where=f'outcome=~"{OURS}"'),
                    rate("chorus_requests_total", "requested_model"),
                )
            },
        ),
        Panel(
            "First byte",
            "From arrival to the first byte of the answer.",
            "s",
            quantiles("chorus_response_start_seconds"),
        ),
        Panel(
            "Whole answer",
            "From arrival to the end of the answer.",
            "s",
            quantiles("chorus_request_duration_seconds"),
        ),
        Panel(
            "Models, p95",
            "How long calls to each model took.",
            "s",
            {"{{model}}": quantile(0.95, "chorus_call_duration_seconds", "model")},
        ),
        Panel(
            "Failed calls by model",
            "Calls that did not end well; a retry or another model may still have answered.",
            "reqps",
            {"{{model}} {{outcome}}": rate("chorus_calls_total", "model", "outcome", where='outcome!="ok"')},
        ),
        Panel(
            "Left alone",
            "Deployments that failed and are not asked for a while, by their place in the config: 1 while it is so.",
            "short",
            {"{{model}} {{deployment}}": "max by (model, deployment) (chorus_deployment_open)"},
        ),
        Panel(
            "Retries",
            "Attempts beyond the calls, a second.",
            "reqps",
            {
                "{{model}}": f"{rate('chorus_attempts_total', 'model')} - on (model) "
                f"{rate('chorus_calls_total', 'model')}"
            },
        ),
        Panel(
            "Answers from caches",
            "Requests that the cache was asked: given an exact or a semantic answer, or a miss.",
            "reqps",
            {"{{how}}": f"{rate('chorus_cache_answers_total', 'how')} or vector(0)"},  # no cache: no answers
            stacked=True,
        ),
        Panel(
            "Spending an hour, by model",
            "US dollars, by who was paid.",
            "currencyUSD",
            {"{{model}}": f"3600 * {rate('chorus_cost_usd_total', 'model')}"},
            stacked=True,
        ),
        Panel(
            "Spending an hour, by what was asked for",
            "US dollars, by the name in the request.",
            "currencyUSD",
            {"{{requested_model}}": f"3600 * {rate('chorus_request_cost_usd_total', 'requested_model')}"},
            stacked=True,
        ),
        Panel(
            "Tokens a second",
            "Read (input) and written (output) by each model.",
            "short",
            {"{{model}} {{kind}}": rate("chorus_tokens_total", "model", "kind")},
        ),
        Panel(
            "Event loop delay",
            "How late a worker's event loop runs: above a tenth of a second it is short of CPU.",
            "s",
            {"worst worker": "max(chorus_event_loop_delay_seconds)"},
        ),
        Panel(
            "Degraded",
            "1 while a part does not work though requests are answered.",
            "short",
            {"{{component}}": "max by (component) (chorus_degraded)"},
        ),
        Panel(
            "Records dropped",
            "A second: the ledger, the collector of traces or who reads the log was too slow, or away.",
            "short",
            {
                "ledger": rate("chorus_ledger_dropped_total"),
                "stored prompts and answers": rate("chorus_ledger_texts_dropped_total"),
                "traces": rate("chorus_traces_dropped_total"),
                "log lines": rate("chorus_log_lines_dropped_total"),
            },
        ),
        Panel(
            "Ledger behind, days",
            "Days that are over and not yet added up: reports over them read every request. It falls to 0 within "
            "minutes of a start.",
            "short",
            {"days": "max(chorus_ledger_days_behind)"},
        ),
        Panel(
            "Config reloads",
            "In five minutes; refused ones left the old config in force.",
            "short",
            {"{{outcome}}": "sum by (outcome) (increase(chorus_config_reloads_total[5m]))"},
        ),
        Panel(
            "Configs in force",
            "More than one: replicas differ. Beside it, changed settings that wait for a restart.",
            "short",
            {
                "configs": 'count(count_values("hash", chorus_config_hash))',
                "settings that need a restart": "max(chorus_config_restart_needed)",
                "hours since a reload": "(time() - max(chorus_config_last_reload_success_timestamp_seconds)) / 3600",
            },
        ),
    ),
)

ROUTING = Dashboard(
    "chorus-routing",
    "Chorus: routing decisions",
    (
        Panel(
            "Who is chosen",
            "Share of each strategy's decisions that fell on a model.",
            "percentunit",
            {
                "{{strategy}} → {{chosen}}": shares(
                    DECISIONS, "strategy", "chosen", where='how=~"estimated|default"'
                )
            },
            stacked=True,
        ),
        Panel(
            "Could not decide",
            "Share that took the default: no text, or no embedding in time.",
            "percentunit",
            decided("default", "estimated|default"),
        ),
        Panel(
            "Estimated quality",
            "Of the chosen model, on average. When it moves, what is asked has changed: measure the router anew.",
            "percentunit",
            {"{{strategy}}": mean("chorus_estimated_quality", "strategy")},
        ),
        Panel(
            "Estimated quality, how it spreads",
            "The lowest tenth, the middle, and the highest tenth of requests.",
            "percentunit",
            {
                f"{{{{strategy}}}} p{round(100 * q)}": quantile(q, "chorus_estimated_quality", "strategy")
                for q in (0.1, 0.5, 0.9)
            },
        ),
        Panel(
            "Paid, and what one model alone would have cost",
            "US dollars in the time shown. What was not paid is the router's own estimate, not a measurement.",
            "currencyUSD",
            {
                "{{strategy}}: paid": "sum by (strategy) (increase(chorus_request_cost_usd_total[$__range])) "
                "and on (strategy) sum by (strategy) (increase(chorus_estimated_cost_usd_total[$__range]))",
                "{{strategy}}: had {{model}} answered": "sum by (strategy, model) "
                "(increase(chorus_estimated_cost_usd_total[$__range]))",
            },
            stat=True,
            width=24,
        ),
    ),
)

STRATEGIES = Dashboard(
    "chorus-strategies",
    "Chorus: strategies",
    (
        Panel(
            "Requests by strategy",
            "`direct` is a plain model.",
            "reqps",
            {"{{strategy}}": rate("chorus_requests_total", "strategy")},
            stacked=True,
        ),
        Panel(
            "Cost of a thousand requests",
            "US dollars, all calls of the tree together.",
            "currencyUSD",
            {
                "{{strategy}}": f"1000 * {rate('chorus_request_cost_usd_total', 'strategy')} / "
                f"({rate('chorus_requests_total', 'strategy')} > 0)"
            },
        ),
        Panel(
            "Deferred by cascades",
            "Share of requests that went beyond the first stage.",
            "percentunit",
            decided("deferred", "first|deferred"),
        ),
        Panel(
            "Whose answer is returned",
            "By cascades and answer ensembles.",
            "percentunit",
            {
                "{{strategy}} → {{chosen}}": shares(
                    DECISIONS, "strategy", "chosen", where='how=~"first|deferred|merged"'
                )
            },
            stacked=True,
        ),
        Panel(
            "Fan-out",
            "Calls to answering models that one request leads to, on average.",
            "short",
            {"{{strategy}}": mean("chorus_request_calls", "strategy")},
        ),
        Panel(
            "Fan-out, p95",
            "The same of the widest requests.",
            "short",
            {"{{strategy}}": quantile(0.95, "chorus_request_calls", "strategy")},
        ),
        Panel(
            "First byte, p95",
            "A cascade or vote has to read whole answers before its first byte.",
            "s",
            {"{{strategy}}": quantile(0.95, "chorus_response_start_seconds", "strategy")},
        ),
        Panel(
            "Failed",
            "Share that failed through no fault of the caller.",
            "percentunit",
            {
                "{{strategy}}": share(
                    rate("chorus_requests_total", "strategy", where=f'outcome=~"{OURS}"'),
                    rate("chorus_requests_total", "strategy"),
                )
            },
        ),
    ),
)

OF_STEPS = f" / scalar({rate('chorus_engine_step_seconds_total')})"

ENGINES = Dashboard(
    "chorus-engines",
    "Chorus: engine host",
    (
        Panel(
            "Running",
            "Requests in each engine's batch. A fused request is in the batch of each of its members.",
            "short",
            {"{{engine}}": "sum by (engine) (chorus_engine_running)"},
        ),
        Panel(
            "Waiting",
            "Requests without room in the batch: what to scale on, before KV caches are full.",
            "short",
            {"{{engine}}": "sum by (engine) (chorus_engine_waiting)"},
        ),
        Panel(
            "KV cache in use",
            "At 100 % requests wait, or are computed anew. The fullest host of each engine.",
            "percentunit",
            {"{{engine}}": "max by (engine) (chorus_engine_kv_cache_usage)"},
        ),
        Panel(
            "KV cache in use, bytes",
            "Over all hosts.",
            "bytes",
            {"{{engine}}": "sum by (engine) (chorus_engine_kv_cache_usage * chorus_engine_kv_cache_bytes)"},
        ),
        Panel(
            "Step",
            "How long one step of the loop takes on average: one token of everything that is running.",
            "s",
            {"step": share(rate("chorus_engine_step_seconds_total"), rate("chorus_engine_steps_total"))},
        ),
        Panel(
            "Where a step's time goes",
            "Forward passes by engine, deciding by fusion; shares of the whole.",
            "percentunit",
            {
                "forward {{engine}}": rate("chorus_engine_forward_seconds_total", "engine") + OF_STEPS,
                "decide {{model}}": rate("chorus_engine_decide_seconds_total", "model") + OF_STEPS,
            },
            stacked=True,
        ),
        Panel(
            "Under way",
            "Generations by public name, engines and fusions.",
            "short",
            {"{{model}}": "sum by (model) (chorus_engine_generations)"},
        ),
        Panel(
            "Begun",
            "Generations a second, by public name.",
            "reqps",
            {"{{model}}": rate("chorus_engine_generations_begun_total", "model")},
        ),
        Panel(
            "Too much, or broken",
            "A second: generations that found no place (429), steps of an engine that failed, places that stalled "
            "requests gave up for others, and answers that a fusion wrote without a member.",
            "short",
            {
                "refused {{model}}": rate("chorus_engine_refused_total", "model"),
                "failed {{engine}}": rate("chorus_engine_failures_total", "engine"),
                "yielded": rate("chorus_engine_yielded_total"),
                "without {{member}}: {{why}}": f"{rate('chorus_engine_left_out_total', 'member', 'why')} or vector(0)",
            },
        ),
    ),
)

DASHBOARDS = (OVERVIEW, ROUTING, STRATEGIES, ENGINES)


def as_json(dashboard: Dashboard) -> str:
    """The file that Grafana provisions."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    body = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["chorus"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "annotations": {"list": []},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
            ]
        },
        "links": [{"title": "Chorus", "type": "dashboards", "tags": ["chorus"], "asDropdown": True}],
        "panels": [
            _panel(number, panel, place, source)
            for number, (panel, place) in enumerate(_laid_out(dashboard.panels), start=1)
        ],
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def _laid_out(panels: tuple[Panel, ...]) -> Iterator[tuple[Panel, dict[str, int]]]:
    """Row by row, from left to right; a panel that does not fit begins a row."""
    x = y = row = 0
    for panel in panels:
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        yield panel, {"x": x, "y": y, "w": panel.width, "h": panel.height}
        x, row = x + panel.width, max(row, panel.height)


def _panel(number: int, panel: Panel, place: dict[str, int], source: dict[str, str]) -> dict[str, Any]:
    drawn: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.unit == "percentunit":
        drawn["max"] = 1
    if panel.unit == "currencyUSD":
        drawn["decimals"] = 4  # small models cost little
    if not panel.stat:
        drawn["custom"] = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    options: dict[str, Any] = {
        "tooltip": {"mode": "multi", "sort": "desc"},
        "legend": {"placement": "bottom"},
    }
    if panel.stat:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "auto", "colorMode": "none"}
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": drawn, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": source,
                "expr": expr,
                "legendFormat": legend or panel.title,
            }
            for i, (legend, expr) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    for dashboard in DASHBOARDS:
        path = FOLDER / f"{dashboard.uid}.json"
        path.write_text(as_json(dashboard))
        print(path)
