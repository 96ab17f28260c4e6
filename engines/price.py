"""What a token of a local model costs: CPU seconds measured, times a stated price of a core-hour.

    price per token = CPU seconds per token / 3600 x USD per core-hour

CPU seconds are the whole process's (all threads), so the figure does not depend on how many cores there are,
and a busy machine disturbs it less than a clock would. Input tokens are measured on prompts alone, output
tokens on decoding alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.assemble import engine_specs
from engines.engine import Engine, EngineSpec
from engines.generation import Sampling
from protocol.errors import SettingsError
from protocol.settings import Settings
from protocol.usage import Price

__all__ = ["Measured", "measure", "measure_all", "priced", "table", "write"]

PROMPT_TOKENS = 256
DECODE_TOKENS = 64
BATCH = 4
"""Requests decoded at once while measuring: a little company, as in service, not the flattering full
batch."""


@dataclass(frozen=True, slots=True)
class Measured:
    """CPU seconds per token of one engine model."""

    model: str
    input_cpu_s: float
    output_cpu_s: float


def measure_all(settings: Settings, say: Callable[[str], None] = lambda line: None) -> list[Measured]:
    """Load and measure every engine model of the settings, one after the other: about half a minute each."""
    specs = engine_specs(settings)
    if not specs:
        raise SettingsError("The config has no engine models, so there is nothing to measure.")
    out = []
    for spec in specs:
        say(f"loading {spec.name}")
        engine = Engine.load(spec)
        say(f"measuring {spec.name}")
        out.append(measure(spec, engine))
        engine.close()
    return out


def measure(spec: EngineSpec, engine: Engine, clock: Callable[[], float] = time.process_time) -> Measured:
    """CPU seconds per input and per output token of a loaded, idle engine.

    `clock` gives the process's CPU seconds. The prompts differ from each other and from run to run of the
    loop, so the prefix cache gives nothing away."""
    length = min(PROMPT_TOKENS, spec.max_model_len - DECODE_TOKENS - 1)
    _run(engine, _prompts(length, 1, salt=0), 2)  # first use allocates and picks kernels
    prompts = _prompts(length, BATCH, salt=1)
    before = clock()
    _run(engine, prompts, 1)
    read = (clock() - before) / (BATCH * length)
    prompts = _prompts(8, BATCH, salt=2)
    before = clock()
    _run(engine, prompts, DECODE_TOKENS)
    decoded = clock() - before - BATCH * 8 * read
    return Measured(spec.name, read, decoded / (BATCH * DECODE_TOKENS))


def priced(measured: Measured, core_hour_usd: float) -> Price:
    """US dollars per input and output token. Raises `SettingsError` unless the core-hour costs something."""
    if not core_hour_usd > 0:
        raise SettingsError(f"The price of a core-hour must be above 0, got {core_hour_usd}.")
    per_second = core_hour_usd / 3600
    return Price(measured.input_cpu_s * per_second, measured.output_cpu_s * per_second)


def table(measured: Sequence[Measured], core_hour_usd: float) -> str:
    """The figures as lines of text, columns aligned."""
    lines = [f"{'model':<24}{'CPU ms/in':>12}{'CPU ms/out':>12}{'USD/1M in':>12}{'USD/1M out':>12}"]
    for one in measured:
        price = priced(one, core_hour_usd)
        lines.append(
            f"{one.model:<24}{one.input_cpu_s * 1e3:>12.3f}{one.output_cpu_s * 1e3:>12.3f}"
            f"{price.input_usd * 1e6:>12.5f}{price.output_usd * 1e6:>12.5f}"
        )
    return "\n".join(lines)


def write(path: Path, measured: Sequence[Measured], core_hour_usd: float) -> list[str]:
    """Replace the `price` lines of these models in the YAML file at `path`, comments and all else untouched.

    Only prices written on one line below their model, `price: {…}`, are replaced. Returns the models written.
    """
    text, written = path.read_text(encoding="utf-8"), []
    for one in measured:
        price = priced(one, core_hour_usd)
        prices = f"input_usd_per_token: {price.input_usd:.4g}, output_usd_per_token: {price.output_usd:.4g}"
        name = re.escape(one.model)
        block = re.compile(rf"^(  {name}:\n(?:(?:    .*)?\n)*?    price: )\{{.*\}}", re.MULTILINE)
        text, count = block.subn(rf"\g<1>{{{prices}}}", text, count=1)
        if count:
            written.append(one.model)
    path.write_text(text, encoding="utf-8")
    return written


def _prompts(length: int, count: int, salt: int) -> list[list[int]]:
    """Prompts of plain ids that share no prefix."""
    return [[100 + (salt * 977 + n * 389 + i * 31) % 20000 for i in range(length)] for n in range(count)]


def _run(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    for n, prompt in enumerate(prompts):
        engine.add(f"price-{n}", prompt, Sampling(max_tokens=tokens, temperature=0), ())
    while engine.has_work:
        engine.forward()
        engine.finish({})
