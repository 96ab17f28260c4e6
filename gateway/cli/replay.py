"""`chorus replay`: what other policies would have been worth, from logged decisions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.parameters import CONFIG, ConfigOption, JsonFile, Since, existing, seconds, words, write_json
from protocol.errors import MethodError, SettingsError

if TYPE_CHECKING:
    from gateway.ledger.logged import Decisions
    from outcomes.assignment import Knob
    from outcomes.metrics import Interval
    from outcomes.off_policy import Value
    from protocol.routing import Policy
    from protocol.settings import Routing, Settings

__all__ = ["replay"]

FEWEST = 50
"""Decisions that a policy's value must rest on, by their weight, to be told without a warning."""
LEFT_OUT = 0.01
"""Share of decisions that IPS cannot see from which on a warning says so."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a policy would have been worth: its name, and its value by each reward, "score" where there are scores, and
    "cost_usd"."""

    policy: str
    values: dict[str, Value]


def replay(
    strategy: Annotated[
        str | None, typer.Argument(help="A strategy with `route`; default: the only one of the config.")
    ] = None,
    config: ConfigOption = CONFIG,
    since: Since = "30d",
    scores: Annotated[
        Path | None,
        typer.Option(
            help="What answers were worth: CSV with the columns request,score, or JSON lines of such objects."
        ),
    ] = None,
    quality: Annotated[
        str | None, typer.Option(help="Comma-separated settings of the quality knob to replay.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy as the config has it, e.g. 'margin: 0.05'; may be repeated."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Estimate from the ledger what other policies would have been worth: score and cost, had they decided.

    Every decision is logged with its estimates and its propensity; another policy decides again on the same estimates.
    Its value comes from the requests on which it agrees with what was done (IPS, SNIPS), and from the estimates where
    it does not (DR). That takes exploration (`route.explore`): what was never tried, no log can tell. The ledger knows
    costs; scores are yours, by the request's id or its `x-request-id`. Texts are not stored by default, so another
    router's estimates cannot be replayed: `chorus evaluate` judges that on outcomes.

    Examples:
        chorus replay auto --since 7d --scores ratings.csv --quality 0.2,0.5,0.8

        chorus replay auto --policy 'threshold: {strong: large, weak: small, alpha: 0.6}' --policy 'margin: 0.05'
    """
    from gateway.ledger.logged import logged_decisions
    from gateway.ledger.place import make_ledger
    from gateway.ledger.store import reading
    from outcomes.importing import read_scores
    from protocol.settings import load_settings

    settings = load_settings(config)
    name, route = _routed(settings, strategy)
    policies = _policies(route, quality, policy or [])
    with closing(make_ledger(settings)) as ledger:
        decisions = logged_decisions(reading(ledger), name, time.time() - seconds(since))
    if not len(decisions):
        raise MethodError(f"The ledger has no decision of {name!r} since then that estimates have made.")
    rewards = {"cost_usd": decisions.cost_usd}
    unmatched = 0
    if scores is not None:
        given, unmatched = decisions.scores(read_scores(existing(scores)))
        rewards = {"score": given, **rewards}
    replayed = [Replayed(told, _values(decisions, rewards, policy)) for told, policy in policies]
    notes = _notes(decisions, replayed, unmatched)
    if str(json) != "-":
        _show(replayed, notes)
    if json is not None:
        found = {
            "strategy": name,
            "decisions": len(decisions),
            "routers": decisions.routers,
            "policies": [asdict(one) for one in replayed],
            "notes": notes,
        }
        write_json(found, json)


def _routed(settings: Settings, name: str | None) -> tuple[str, Routing]:
    """The strategy and its `route`. Raises `SettingsError`."""
    routes = {
        known: strategy.route for known, strategy in settings.strategies.items() if strategy.route is not None
    }
    if name is None and len(routes) == 1:
        return next(iter(routes.items()))
    if name not in routes:
        which = f"{name!r} is no strategy with `route`" if name else "Name a strategy with `route`"
        raise SettingsError(f"{which}; the config has {', '.join(sorted(routes)) or 'none'}.")
    return name, routes[name]


def _policies(route: Routing, quality: str | None, rules: Sequence[str]) -> list[tuple[str, Policy]]:
    """Those that were asked for, with their names; by default the config's own and the knob from end to end. Raises
    `SettingsError`, `MethodError`."""
    import yaml
    from pydantic import ValidationError

    from protocol.settings import RuleSettings
    from routers.policy import Paced, Utility, configured

    found: list[tuple[str, Policy]] = []
    try:
        levels = [float(level) for level in words(quality)]
        asked = [RuleSettings.model_validate(yaml.safe_load(rule)) for rule in rules]
    except (ValueError, yaml.YAMLError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise SettingsError(
            f"--quality takes numbers, --policy what `policy:` does in a config: {told}."
        ) from None
    if wrong := [level for level in levels if not 0 <= level <= 1]:
        raise SettingsError(f"--quality {wrong[0]:g}: the knob goes from 0 (cheapest) to 1 (best).")
    if not levels and not asked:
        asked = [route.policy] if route.policy is not None else []
        levels = sorted({0.0, 0.25, 0.5, 0.75, 1.0, route.quality})
    if levels:
        knob = _knob(route)
        found += [(f"quality {level:g}", Utility(knob.lam(level))) for level in levels]
    for rule in asked:
        budget = rule.budget
        made = (
            Paced(_knob(route), budget.usd_per_request, budget.window, route.quality)
            if budget is not None
            else configured(rule)
        )
        found.append((made.told, made))
    return found


def _knob(route: Routing) -> Knob:
    """The calibrated knob of its artefact. Raises `MethodError`."""
    from outcomes.artefact import read_manifest
    from outcomes.assignment import Knob

    manifest = read_manifest(route.artefact)
    if manifest.knob is None:
        raise MethodError(f"{route.artefact} has no calibrated quality knob; write it with `chorus train`.")
    return Knob.parse(manifest.knob)


def _values(decisions: Decisions, rewards: dict[str, Any], policy: Policy) -> dict[str, Value]:
    """By each reward, of those decisions for which it is known and the policy has a candidate."""
    import numpy as np

    from outcomes.metrics import chosen
    from outcomes.off_policy import Logged, off_policy

    choice = policy.choose(decisions.estimate)
    able = ~np.isnan(chosen(decisions.estimate.quality, choice))
    models = {"score": decisions.estimate.quality, "cost_usd": decisions.estimate.cost_usd}
    values = {}
    for name, reward in rewards.items():
        rows = able & ~np.isnan(reward)
        if not rows.any():
            raise MethodError(f"No decision that this policy could have made has a {name}.")
        logged = Logged(decisions.chosen[rows], decisions.propensity[rows], reward[rows])
        values[name] = off_policy(logged, choice[rows], models[name][rows])
    return values


def _notes(decisions: Decisions, replayed: Sequence[Replayed], unmatched: int) -> list[str]:
    """What to know before believing it."""
    from gateway.ledger.logged import MOST

    told = [
        f"{len(decisions)} decisions, {decisions.left_out} left out because no estimates decided; estimated by "
        f"{', '.join(f'{name} ({count})' for name, count in decisions.routers.items())}."
    ]
    if len(decisions) + decisions.left_out == MOST:
        told.append(f"These are the latest {MOST}; there are earlier ones.")
    if unmatched:
        told.append(
            f"{unmatched} of the scores belong to no decision here, or to several by their x-request-id."
        )
    if (decisions.propensity == 1).all():
        told.append(
            "Nothing was explored: every choice was certain (propensity 1). IPS and SNIPS tell only of queries on "
            "which a policy agrees with what was done; DR takes the router's own estimates for all others, bias and "
            "all. Set `route.explore`, e.g. 0.05, to learn more."
        )
    else:
        told += [
            f"{one.policy}: {1 - value.covered:.0%} of the decisions were certain and otherwise; IPS and SNIPS leave "
            "these out, DR has the bare estimates for them."
            for one in replayed
            if (value := one.values["cost_usd"]).covered < 1 - LEFT_OUT
        ]
    for one in replayed:
        for reward, value in one.values.items():
            if value.doubted:
                told.append(
                    f"{one.policy}: the mean weight of its {reward} is {value.weight.mean:.2f} "
                    f"[{value.weight.low:.2f}, {value.weight.high:.2f}], which should be 1: chance, scores given to "
                    "some models' answers sooner than to others', or propensities that were not at work."
                )
                break
            if value.effective < FEWEST:
                told.append(f"{one.policy}: its {reward} rests on {value.effective:.0f} effective decisions.")
                break
    return told


def _show(replayed: Sequence[Replayed], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    for reward, form in (("score", ".3f"), ("cost_usd", ".3g")):
        rows = [(one.policy, one.values[reward]) for one in replayed if reward in one.values]
        if not rows:
            continue
        headings = ("policy", "DR", "gain over what was done", "IPS", "SNIPS", "agrees", "effective")
        table = Table(*headings, box=None, pad_edge=False, title=_TITLES[reward], title_justify="left")
        table.columns[0].no_wrap = True
        logged = max((value for _, value in rows), key=lambda value: value.decisions)
        table.add_row("as it was", _interval(logged.logged, form), "", "", "", "", str(logged.decisions))
        for name, value in rows:
            table.add_row(
                name,
                _interval(value.dr, form),
                _interval(value.gain, "+" + form),
                _interval(value.ips, form),
                _interval(value.snips, form),
                f"{value.agreed:.0%}",
                f"{value.effective:.0f}",
            )
        console.print(table)
    for note in notes:
        console.print(note, markup=False)


_TITLES = {"score": "score", "cost_usd": "US dollars a request"}


def _interval(of: Interval, form: str) -> str:
    if of.mean != of.mean:
        return "?"
    return f"{of.mean:{form}} [{of.low:{form}}, {of.high:{form}}]"
