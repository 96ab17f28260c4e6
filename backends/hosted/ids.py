"""What workers and the hosted process call a deployment between themselves."""

from __future__ import annotations

__all__ = ["deployment_id"]


def deployment_id(model: str, index: int) -> str:
    """The `index`th hosted deployment of `model`. No model of a config has such a name."""
    return f"{model}#{index}"
