"""`chorus spans`: what fusions that write in spans and steps learn beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.parameters import Config, Options, options, words
from protocol.errors import SettingsError

if TYPE_CHECKING:
    from outcomes.collect import Prompt
    from protocol.settings import Settings

__all__ = ["group"]

group = typer.Typer(
    help="What answers in spans and steps need: label steps, train a process reward, measure reference statistics.",
    no_args_is_help=True,
)

Queries = Annotated[list[Path], typer.Option(help="Query set, JSON lines; may be repeated.")]
Models = Annotated[
    str | None, typer.Option(help="Comma-separated engine models; default: all of the config.")
]
Categories = Annotated[
    str | None, typer.Option(help="Comma-separated categories of the query set; default: all.")
]


@group.command()
def steps(
    config: Config,
    queries: Queries,
    out: Annotated[Path, typer.Option(help="Labelled steps to write (.jsonl.gz).")],
    models: Models = None,
    categories: Categories = None,
    answers: Annotated[int, typer.Option(min=1, help="Answers drawn of each model to each question.")] = 2,
    rollouts: Annotated[int, typer.Option(min=1, help="Ends drawn behind each line of an answer.")] = 4,
    temperature: Annotated[float, typer.Option(min=0, help="Of all that is drawn.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Draws the same again, up to how requests are batched.")] = 0,
) -> None:
    """Label steps by their outcome: draw answers, and from each of their lines draw ends; a step is as good as the
    share of ends that a grader finds right.

    Loads the engine models of the config itself; no gateway needs to run.

    Example:
        chorus spans steps config/local.yaml --queries config/queries/everyday.jsonl --out steps.jsonl.gz
    """
    from engines.rollouts import Rollouts
    from outcomes.process_labels import Begun, label, write_steps

    settings = _engines(config, models)
    prompts = _prompts(queries, categories)

    def write(model: str, begun: list[Begun]) -> list[str]:
        return writer.write(model, [(each.question, each.answer, each.tokens) for each in begun])

    with Rollouts.of(settings, temperature=temperature, seed=seed) as writer:
        names = list(settings.models)
        found = label(prompts, names, write, answers=answers, rollouts=rollouts, report=typer.echo)  # type: ignore[arg-type]
    write_steps(out, found)
    typer.echo(f"{len(found)} labelled steps of {len(prompts)} questions in {out}")


@group.command()
def reward(
    out: Annotated[Path, typer.Option(help="Folder of the artefact to write.")],
    steps: Annotated[Path | None, typer.Option(help="Labelled steps of `chorus spans steps`.")] = None,
    outcomes: Annotated[
        Path | None, typer.Option(help="Outcome table whose graded answers count as whole answers.")
    ] = None,
    option: Options = None,
) -> None:
    """Train a process reward on labelled steps, and say how well it does on questions it has not seen.

    The head of a small encoder learns, and with `layers` as many of its upper layers. Needs torch; serving does not.

    Examples:
        chorus spans reward --steps steps.jsonl.gz --out artefacts/reward

        chorus spans reward --steps steps.jsonl.gz --outcomes outcomes.parquet --out artefacts/reward --option layers=2
    """
    import orjson

    from outcomes.fine_tuning import progress_line
    from outcomes.process_labels import graded, read_steps
    from outcomes.process_reward import train_reward
    from outcomes.table import read_table

    if steps is None and outcomes is None:
        raise SettingsError("Name labelled steps (--steps), an outcome table (--outcomes), or both.")
    found = [*(read_steps(steps) if steps else ()), *(graded(read_table(outcomes)) if outcomes else ())]
    manifest = train_reward(found, out, options=options(option), report=progress_line)
    typer.echo(orjson.dumps(manifest.metrics, option=orjson.OPT_INDENT_2).decode())
    typer.echo(f"{out}: version {manifest.version}")


@group.command()
def reference(
    config: Config,
    queries: Queries,
    out: Annotated[Path, typer.Option(help="Folder of the artefact to write.")],
    models: Models = None,
    categories: Categories = None,
) -> None:
    """Measure each model's perplexity and confidence over a set of questions: what ensemble-hub compares with when it
    picks who writes.

    Example:
        chorus spans reference config/local.yaml --queries config/queries/everyday.jsonl --out artefacts/reference
    """
    from engines.rollouts import Rollouts
    from ensembles.spans.ensemble_hub import Reference, save_references
    from outcomes.table import query_id

    prompts = _prompts(queries, categories)
    if len(prompts) < 2:
        raise SettingsError("Statistics need two questions at least.")
    with Rollouts.of(_engines(config, models)) as reader:
        readings = reader.survey([prompt.prompt for prompt in prompts])
    save_references(out, readings, query_id("\n".join(prompt.prompt for prompt in prompts)))
    for name, read in readings.items():
        found = Reference.of(read)
        typer.echo(
            f"{name}: perplexity {found.perplexity[0]:.1f} ± {found.perplexity[1]:.1f}, "
            f"confidence {found.confidence[0]:.3f} ± {found.confidence[1]:.3f}, {len(read)} questions"
        )


def _engines(config: Path, models: str | None) -> Settings:
    """The settings with these engine models and nothing else. Raises `SettingsError`."""
    from protocol.settings import load_settings

    settings = load_settings(config)
    engines = {name: model for name, model in settings.models.items() if model.engine is not None}
    wanted = words(models) or list(engines)
    if unknown := [name for name in wanted if name not in engines]:
        raise SettingsError(f"The config has no engine model {unknown[0]!r}; it has {', '.join(engines)}.")
    return settings.model_copy(update={"models": {name: engines[name] for name in wanted}, "strategies": {}})


def _prompts(queries: list[Path], categories: str | None) -> list[Prompt]:
    from outcomes.collect import read_prompts

    found = [prompt for path in queries for prompt in read_prompts(path)]
    wanted = words(categories)
    kept = [prompt for prompt in found if not wanted or prompt.category in wanted]
    if not kept:
        raise SettingsError(f"There is no question of {', '.join(wanted) or 'any category'}.")
    return kept
