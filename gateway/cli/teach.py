"""`chorus teach`: train what a fusion of the config has to learn, on its own engine models."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from gateway.cli.parameters import Config, Options, Outcomes, options
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from engines.teaching.lessons import Lesson
    from outcomes.collect import Prompt

__all__ = ["teach"]

HELD_OUT = 0.25


def teach(
    config: Config,
    strategy: Annotated[
        str, typer.Argument(help="A strategy of the config with `fuse`: its method is taught.")
    ],
    outcomes: Outcomes,
    queries: Annotated[
        list[Path], typer.Option(help="The query set that was asked, JSON lines; its graders judge.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the artefact to write: what its option `artefact` names.")
    ],
    report: Annotated[
        Path | None, typer.Option(help="JSON file for the figures on held-out questions.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=8, help="Learn from so many questions, drawn by chance.")
    ] = None,
    option: Options = None,
) -> None:
    """Train the part of a fusion that learns (citer's router, etr's expert tokens) and write its artefact.

    It learns from graded answers of the fusion's own members; a quarter of the questions, chosen by a hash of their
    text, is held out and gives the figures. It takes minutes, loads the models, and needs no running gateway.

    Example:
        chorus teach config/tokens.yaml routed --outcomes config/queries/everyday.outcomes.parquet --queries
        config/queries/everyday.jsonl --out config/artefacts/citer
    """
    from engines.assemble import engine_specs
    from engines.teaching import Pupil
    from engines.teaching import teach as learn
    from engines.templates import prompting
    from outcomes.table import read_table
    from protocol.methods import FUSIONS, find_method
    from protocol.settings import load_settings

    settings = load_settings(config)
    chosen = settings.strategies.get(strategy)
    if chosen is None or chosen.fuse is None:
        fused = [name for name, one in settings.strategies.items() if one.fuse is not None]
        raise SettingsError(f"The config has no fusion {strategy!r}; it has {', '.join(fused) or 'none'}.")
    members = tuple(chosen.fuse.members)
    method = find_method(chosen.fuse.method, *FUSIONS)
    specs = {spec.name: spec for spec in engine_specs(settings)}
    pupils = []
    for name in members:
        engine = settings.models[name].engine
        assert engine is not None  # checked with the settings
        pupils.append(Pupil(specs[name], prompting(specs[name].folder, engine.chat)))
    known = lessons(outcomes, queries, members)
    if limit is not None and limit < len(known):
        known = Random(0).sample(known, limit)
    found = learn(method.id, pupils, known, options(option), typer.echo)
    table = read_table(outcomes)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = found.fusion.save(out, members, data=table.digest(), metrics=found.metrics, created=created)
    figures = orjson.dumps(
        {"method": method.id, "members": members, "artefact": manifest.version, **found.metrics},
        option=orjson.OPT_INDENT_2,
    )
    typer.echo(figures.decode())
    if report is not None:
        report.write_bytes(figures + b"\n")
    typer.echo(f"{method.id} {manifest.version} for {', '.join(members)} written to {out}")


def lessons(outcomes: Path, queries: list[Path], members: tuple[str, ...]) -> list[Lesson]:
    """Questions of the query sets that the table has answers of the members to. Raises `SettingsError` where there are
    none, or where only a judge model could grade."""
    from engines.teaching.lessons import Answer, Lesson
    from outcomes.collect import read_prompts
    from outcomes.grading import GRADERS
    from outcomes.table import query_id, read_table, split_mask

    table = read_table(outcomes).only(members)
    row = {id: n for n, id in enumerate(table.query_ids)}
    prompts = [prompt for path in queries for prompt in read_prompts(path)]
    prompts = [p for p in prompts if p.grader in GRADERS and query_id(p.prompt) in row]
    if not prompts:
        raise SettingsError(f"{outcomes} has no answers to auto-graded questions of the query set.")
    held_out = split_mask([prompt.prompt for prompt in prompts], HELD_OUT, "teach")
    found = []
    for prompt, kept in zip(prompts, held_out.tolist(), strict=True):
        n = row[query_id(prompt.prompt)]
        right = {
            str(table.response[n, m]): bool(table.completion_tokens[n, m] < prompt.max_tokens)
            for m in range(len(members))
            if table.score[n, m] == 1 and table.response[n, m]
        }
        if not right and prompt.grader != "regex":
            right = {prompt.answers[0]: True}
        found.append(
            Lesson(
                prompt.prompt,
                prompt.category,
                tuple(Answer(text, ended) for text, ended in right.items()),
                dict(zip(members, table.score[n].tolist(), strict=True)),
                partial(_right, prompt),
                prompt.max_tokens,
                kept,
            )
        )
    return found


def _right(prompt: Prompt, text: str) -> bool:
    return prompt.grade(text) == 1
