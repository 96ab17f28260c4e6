"""From settings to a host: which engines to load, which fusions to serve, how to prompt each model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson

from engines.engine import Engine, EngineSpec
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

__all__ = ["assemble", "engine_specs", "fusion_spec", "fusion_specs"]


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
    fusions = fusion_specs(settings)
    kinds = {name: model.engine.chat for name, model in settings.models.items() if model.engine is not None}
    prompts = {spec.name: prompting(spec.folder, kinds[spec.name]) for spec in specs}
    ranks = max(spec.tensor_parallel for spec in specs)
    if ranks == 1:
        return Host(specs, fusions, on_crash), prompts
    from engines.ranks import Leader

    leader = Leader(settings, ranks)
    load = partial(Engine.load, rank=leader.rank)
    return Host(specs, fusions, on_crash, load=load, inbox=leader), prompts


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
                device=engine.device,
                tensor_parallel=_tensor_parallel(name, engine.tensor_parallel, folder),
            )
        )
    sizes = {spec.name: spec.tensor_parallel for spec in specs if spec.tensor_parallel > 1}
    if len({*sizes.values()}) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise SettingsError(
            f"models.*.engine.tensor_parallel: all models of a host that share devices share the same ones, so the "
            f"numbers have to be the same or 1, and are {told}. Other models belong into a host of their own."
        )
    placed = [spec.name for spec in specs if spec.device is not None and ":" in spec.device]
    if sizes and placed:
        raise SettingsError(
            f"models.{placed[0]}.engine.device: where models share devices (tensor_parallel: {', '.join(sizes)}), each "
            "rank runs all of them on the device with its own number. Leave the number out."
        )
    return specs


def _tensor_parallel(name: str, ranks: int, folder: Path) -> int:
    """Checked against the model: vLLM gives every rank the same number of attention heads."""
    config = orjson.loads((folder / "config.json").read_bytes())
    heads = config.get("text_config", config).get("num_attention_heads", ranks)
    if heads % ranks:
        raise SettingsError(
            f"models.{name}.engine.tensor_parallel: {ranks} ranks cannot share the {heads} attention heads evenly."
        )
    return ranks


def fusion_specs(settings: Settings) -> list[FusionSpec]:
    """One spec per fusion."""
    return [fusion_spec(name, s.fuse) for name, s in settings.strategies.items() if s.fuse is not None]


def fusion_spec(name: str, settings: FusionSettings) -> FusionSpec:
    """The method with its options, and its members in the order of the config, the main one where it says."""
    method = find_method(settings.method, *FUSIONS, where=f"strategies.{name}.fuse.method")
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
