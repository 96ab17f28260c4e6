"""The settings: one YAML file, typed, frozen, validated once at the edge.

Every value that is wrong is reported with its path, what was found and what is accepted; an unknown key with the
nearest known one. Secrets are written as `os.environ/NAME` (LiteLLM's notation, also `${NAME}`) and shown redacted.
"""

from protocol.settings.models import (
    Deployment,
    EmbedderModel,
    Endpoint,
    EngineModel,
    Hedge,
    HostedModel,
    ModelSettings,
    OpenAIModel,
)
from protocol.settings.names import check_names
from protocol.settings.prices import PriceSettings, TierSettings, TokenPrices
from protocol.settings.reading import load_settings, parse_settings
from protocol.settings.strategies import (
    Aggregate,
    BudgetRule,
    Cascade,
    Fusion,
    Routing,
    RuleSettings,
    StrategySettings,
    Talk,
    ThresholdRule,
)
from protocol.settings.whole import Resilience, ServerSettings, Settings

__all__ = [
    "Aggregate",
    "BudgetRule",
    "Cascade",
    "Deployment",
    "EmbedderModel",
    "Endpoint",
    "EngineModel",
    "Fusion",
    "Hedge",
    "HostedModel",
    "ModelSettings",
    "OpenAIModel",
    "PriceSettings",
    "Resilience",
    "Routing",
    "RuleSettings",
    "ServerSettings",
    "Settings",
    "StrategySettings",
    "Talk",
    "ThresholdRule",
    "TierSettings",
    "TokenPrices",
    "check_names",
    "load_settings",
    "parse_settings",
]
