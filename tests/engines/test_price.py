"""Prices from measured CPU seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.price import Measured, priced, table, write
from protocol.errors import SettingsError
from protocol.settings import parse_settings

FIGURES = [Measured("small", 0.0009, 0.018), Measured("large", 0.0018, 0.036)]
CONFIG = """\
models:
  small:
    engine: {weights: a}
    # a comment that stays
    price: {input_usd_per_token: 1.0e-8, output_usd_per_token: 2.0e-7}
  large:
    engine: {weights: b}
  other:
    engine: {weights: c}
    price: {input_usd_per_token: 5.0e-8, output_usd_per_token: 6.0e-7}
"""


def test_a_price_is_seconds_times_the_core_hour() -> None:
    """0.0009 CPU seconds a token at 0.04 dollars a core-hour are 1e-8 dollars."""
    price = priced(FIGURES[0], 0.04)
    assert price.input_usd == pytest.approx(1e-8)
    assert price.output_usd == pytest.approx(2e-7)
    assert "small" in table(FIGURES, 0.04)


def test_a_core_hour_costs_something() -> None:
    """Free local models would make every cost decision meaningless."""
    with pytest.raises(SettingsError, match="above 0"):
        priced(FIGURES[0], 0)


def test_writing_touches_only_the_price_lines(tmp_path: Path) -> None:
    """The model's own price is replaced, a neighbour's is not, and comments stay."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    assert write(path, FIGURES, 0.4) == ["small"]
    settings = parse_settings(path.read_text())
    small, other = settings.models["small"].price, settings.models["other"].price
    assert small is not None
    assert other is not None
    assert small.input_usd_per_token == pytest.approx(1e-7)
    assert other.input_usd_per_token == 5e-8
    assert "# a comment that stays" in path.read_text()
