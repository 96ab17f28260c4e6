"""From settings to a host: which engines to load, which fusions to serve, how to prompt each model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.engine import EngineSpec
from engines.host import FusionSpec, Host
from engines.templates import Prompting, prompting
from engines.text_state import Feedback
from engines.weights import CATALOGUE, folders
from engines.weights.progress import Progress
from ensembles.options import Learnt, configured
from ensembles.tokens.base import HandsOver
from protocol.errors import ChorusError, SettingsError
from protocol.methods import FUSIONS, find_method
from protocol.settings import Fusion as FusionSettings
from protocol.settings import Settings

__all__ = ["assemble", "engine_specs", "fusion_spec"]


def assemble(
    settings: Settings,
    *,
    progress: Progress | None = None,
    on_crash: Callable[[BaseException], None] = lambda error: None,
) -> tuple[Host, dict[str, Prompting]]:
    """The host, not started, and each engine's prompting. Fetches weights that are not there yet.

    Raises `SettingsError` for settings without engine models, a folder without a model, or a method's wrong
    options."""
    specs = engine_specs(settings, progress)
    if not specs:
        raise SettingsError("The config has no engine models, so there is nothing to host.")
    fusions = [fusion_spec(name, s.fuse) for name, s in settings.strategies.items() if s.fuse is not None]
    kinds = {name: model.engine.chat for name, model in settings.models.items() if model.engine is not None}
    prompts = {spec.name: prompting(spec.folder, kinds[spec.name]) for spec in specs}
    return Host(specs, fusions, on_crash), prompts


def engine_specs(settings: Settings, progress: Progress | None = None) -> list[EngineSpec]:
    """One spec per engine model, weights fetched where their id is in the catalogue."""
    models = {name: model.engine for name, model in settings.models.items() if model.engine is not None}
    found = folders((engine.weights for engine in models.values()), progress=progress)
    specs = []
    for name, engine in models.items():
        folder = found[engine.weights]
        if not (folder / "tokenizer.json").is_file() or not (folder / "config.json").is_file():
            raise SettingsError(
                f"models.{name}.engine.weights: {engine.weights!r} is neither known weights "
                f"({', '.join(CATALOGUE)}) nor a folder with config.json and tokenizer.json."
            )
        specs.append(
            EngineSpec(
                name,
                folder,
                engine.dtype,
                engine.max_model_len,
                engine.kv_cache_gib,
                engine.max_running,
                temperature=engine.temperature,
                max_waiting=engine.max_waiting,
                kv_commit=engine.kv_commit,
            )
        )
    return specs


def fusion_spec(name: str, settings: FusionSettings) -> FusionSpec:
    """The method with its options, and its members in the order of the config, the main one where it says."""
    method = find_method(settings.method, *FUSIONS)
    options = dict(settings.options)
    if "embedding" in method.needs and isinstance(options.get("embedder"), str):
        options["embedder"] = str(_embedder_folder(name, options["embedder"]))
    fusion = configured(method, options, f"strategies.{name}.fuse.options")
    members = tuple(settings.members)
    if isinstance(fusion, Learnt):
        try:
            fusion = fusion.load(members, settings.artefacts)
        except ChorusError as error:
            raise SettingsError(f"strategies.{name}.fuse.artefacts: {error.message}") from None
    elif settings.artefacts:
        raise SettingsError(f"strategies.{name}.fuse.artefacts: {method.id} takes none.")
    main = 0 if settings.main is None else members.index(settings.main)
    feedback: Feedback = "rejoin" if isinstance(fusion, HandsOver) else "append"
    if method.contract in ("span", "step"):
        feedback = "retail"
    shed = settings.shed
    keep: tuple[int, ...] = (main,)
    for field, wanted in (("on_member_failure", settings.on_member_failure == "drop"), ("shed", shed)):
        if wanted and not method.optional_members:
            raise SettingsError(f"strategies.{name}.fuse.{field}: {method.id} cannot go on without a member.")
    if shed is not None and shed.keep:
        strangers = set(shed.keep) - set(members)
        if strangers:
            raise SettingsError(
                f"strategies.{name}.fuse.shed.keep: {', '.join(sorted(strangers))}: not among the members."
            )
        keep = tuple(members.index(each) for each in shed.keep)
    return FusionSpec(
        name,
        members,
        tuple(settings.members.values()),
        fusion,
        main,
        feedback,
        drop=settings.on_member_failure == "drop",
        shed_above=shed.above if shed else None,
        keep=keep,
    )


def _embedder_folder(name: str, weights: str) -> Path:
    """Of an embedder's weights, fetched where their id is in the catalogue."""
    folder = folders([weights])[weights]
    if not (folder / "weights.json").is_file():
        raise SettingsError(
            f"strategies.{name}.fuse.options.embedder: {weights!r} is neither known weights nor a folder with them."
        )
    return folder
