"""Virtual models: how several models become one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from protocol.frozen import Frozen
from protocol.settings.base import Name, exactly_one_of

__all__ = [
    "Aggregate",
    "BudgetRule",
    "Cascade",
    "Fusion",
    "Routing",
    "RuleSettings",
    "Shedding",
    "StrategySettings",
    "Talk",
    "ThresholdRule",
]


class ThresholdRule(Frozen):
    """RouteLLM's rule: the strong model answers where its chance of beating the weak one reaches `alpha`."""

    strong: Name
    weak: Name
    alpha: float = Field(
        ge=0,
        le=1,
        description="from `chorus threshold`; also per request, `router-mf-0.116` or `chorus.threshold`",
    )


class BudgetRule(Frozen):
    """Hold an average cost: the quality knob is moved by what requests really cost, from the route's `quality` on."""

    usd_per_request: float = Field(
        gt=0, description="US dollars that answered requests shall cost on average, where the knob can do it"
    )
    window: int = Field(
        200,
        ge=1,
        description="so many requests' budget saved, or overspent, moves the knob from one end to the other: fewer "
        "follow a change of traffic sooner, more sway less",
    )


class RuleSettings(Frozen):
    """How estimates become a choice, where the quality knob should not: exactly one of them."""

    threshold: ThresholdRule | None = None
    margin: float | None = Field(None, ge=0, le=1, description="the cheapest within this quality of the best")
    cheapest_above: float | None = Field(
        None, ge=0, le=1, description="the cheapest of at least this quality, else the dearest"
    )
    budget: BudgetRule | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> RuleSettings:
        exactly_one_of(self, ("threshold", "margin", "cheapest_above", "budget"))
        return self


class Routing(Frozen):
    """Pick one model beforehand: a trained router estimates quality and cost, a policy chooses."""

    method: str = "knn-router"
    artefact: Path = Field(description="folder written by `chorus train`, relative to this file")
    embedder: Name | None = Field(
        None,
        description="the embedding model the router was trained with; none for routers that read the text",
    )
    models: tuple[Name, ...] = Field((), description="choose among these of the artefact's models only")
    quality: float = Field(0.5, ge=0, le=1, description="default trade: 0 takes the cheapest, 1 the best")
    policy: RuleSettings | None = Field(None, description="another rule than the quality knob")
    switch_margin: float = Field(
        0.05,
        ge=0,
        le=1,
        description="how much better another model must be, in quality less its price by the knob, for a conversation "
        "to leave the one it has; 0 decides each turn by itself",
    )
    explore: float = Field(
        0.0, ge=0, le=1, description="share of requests given to a model drawn at random, to learn from"
    )
    default: Name = Field(description="who answers when the router cannot decide in time")
    embed_deadline_ms: float = Field(500.0, gt=0)


class Cascade(Frozen):
    """Ask in order, stop at the first answer that is good enough."""

    method: str = "token-uncertainty"
    stages: tuple[Name, ...] = Field(min_length=2, description="cheapest first")
    artefact: Path = Field(description="folder written by `chorus calibrate`, relative to this file")


class Shedding(Frozen):
    """Serve a fusion with fewer members while the engine host is busy."""

    above: int = Field(
        ge=1, description="generations under way in the engine host from which on members are left out"
    )
    keep: tuple[Name, ...] = Field((), description="who goes on writing; the main member by default")


class Fusion(Frozen):
    """Decode one text with several engine models together, in the engine host."""

    method: str = "gac"
    members: dict[Name, Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="engine model → weight"
    )
    main: Name | None = Field(None, description="whose tokens max_tokens counts; the first member by default")
    artefacts: dict[Name, Path] = Field(
        default_factory=dict,
        description="part of the method that was trained or measured → its folder, relative to this file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own parameters")
    on_member_failure: Literal["fail", "drop"] = Field(
        "fail",
        description="when a member fails in the middle of a text: the answer fails, or the others write on",
    )
    shed: Shedding | None = Field(None, description="off by default")


class Aggregate(Frozen):
    """Ask several, then vote, rank or fuse their answers."""

    method: str = "agent-forest"
    members: tuple[Name, ...] = Field(min_length=1)
    samples: int = Field(2, ge=1, le=40, description="answers asked of each member")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own parameters")


class Talk(Frozen):
    """Models that decide by what they say: one that asks others (router-r1), or each in turn answering or passing the
    question on (disrouter)."""

    method: str = "router-r1"
    members: dict[Name, str] = Field(
        min_length=1,
        description="model → what it is good at (told to the router of router-r1); in the order of asking",
    )
    router: Name | None = Field(None, description="router-r1: the model that thinks, asks and answers")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own parameters")


class StrategySettings(Frozen):
    """A virtual model: exactly one of `route`, `cascade`, `fuse`, `aggregate`, `talk`."""

    route: Routing | None = None
    cascade: Cascade | None = None
    fuse: Fusion | None = None
    aggregate: Aggregate | None = None
    talk: Talk | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StrategySettings:
        exactly_one_of(self, ("route", "cascade", "fuse", "aggregate", "talk"))
        return self
