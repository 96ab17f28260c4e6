"""One vLLM engine whose step is cut in two, so that somebody may look at the logits, and decide, in between.

vLLM's own step is schedule → execute_model → sample_tokens → update_from_output, and between the second and
the third the logits of the batch lie in the model runner. `Engine` keeps these calls and stops there:

    rows = engine.forward()               # request id → next-token logits, for those that reached one
    engine.finish({request_id: ids, …})   # forced requests go on with these ids, vLLM samples the rest

A forced request may get any number of ids: several are fed in one forward of the next step (the scheduler
treats them as accepted draft tokens), none stalls it at no cost until `feed` wakes it. Neither needs a change
of vLLM: the sampler's output row holds the ids, padded with -1.

Everything here runs in the one thread that called `load`: OpenMP teams belong to a thread, and vLLM binds
them while loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.generation import Sampling
from engines.inside import Inside
from protocol.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from engines.inside import Visitor
    from engines.ranks import Rank

__all__ = ["Engine", "EngineSpec", "Sampled", "prepare_environment"]

log = logging.getLogger("chorus.engines")

PAD = -1
"""vLLM's placeholder for "no token here" in a sampler row."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to load. `folder` is a Hugging Face folder; sizes are tokens, GiB and sequences."""

    name: str
    folder: Path
    dtype: str = "bfloat16"
    max_model_len: int = 2048
    kv_cache_gib: float = 0.5
    max_running: int = 16
    max_batched_tokens: int = 256
    """Prompt tokens read in one step: what everybody else, and a cancellation, waits for at most."""
    temperature: float = 1.0
    """Of requests that name none."""
    max_waiting: int = 1024
    """Sequences that may wait beside those that run."""
    kv_commit: float | None = None
    """How often over the KV cache may be promised; None: as often as wanted."""
    device: str | None = None
    """As torch names it; None: vLLM's choice."""
    tensor_parallel: int = 1
    """Ranks that share the model, each a process on a device of its own."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What vLLM chose for a request that was not forced: its new ids, whether that ended it ("stop",
    "length", or None), and, where asked for, natural-log probabilities of the chosen id and of the most
    likely ones, best first."""

    ids: list[int]
    finish_reason: str | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


Peers = Callable[[], AbstractContextManager[None]]
"""Within it, a model's forwards meet the processes it shares its model with, and no others."""


class Engine:
    """A loaded model. Request ids are the caller's and must be unique among the live ones."""

    def __init__(self, spec: EngineSpec, core: Any, peers: Peers = nullcontext) -> None:
        self.spec = spec
        self._peers = peers
        self._core = core
        self._scheduler = core.scheduler
        self._runner = core.model_executor.driver_worker.worker.model_runner
        self._sample = self._runner._sample  # noqa: SLF001  the cut described above is made here
        self._runner._sample = self._directed_sample  # noqa: SLF001
        self._scheduled: Any = None
        self._forced: Mapping[str, Sequence[int]] = {}
        self._logprobs: Any = None
        self._watched: dict[str, frozenset[int]] = {}
        self._seen: dict[str, dict[int, torch.Tensor]] = {}
        self._cached: dict[str, int] = {}
        self._inside = Inside(self._runner)
        self.crowded = False
        """Whether the last step computed nothing although somebody waits: there is no room, and nobody moves."""

    @classmethod
    def load(cls, spec: EngineSpec, rank: Rank | None = None) -> Engine:
        """Load weights and allocate the KV cache: about ten seconds for a small model on two cores. Of a host of
        several ranks, `rank` is this process's."""
        prepare_environment()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor

        config = EngineArgs(
            model=str(spec.folder),
            dtype=spec.dtype,
            max_model_len=spec.max_model_len,
            max_num_seqs=spec.max_running,
            max_num_batched_tokens=max(spec.max_batched_tokens, spec.max_running),
            kv_cache_memory_bytes=int(spec.kv_cache_gib * 2**30),
            skip_tokenizer_init=True,
            enforce_eager=True,
            async_scheduling=False,
            enable_prefix_caching=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **(rank.options(spec) if rank else {}),
        ).create_engine_config()
        if spec.device is not None:
            _place(config, spec.name, spec.device)
        peers = rank.peers(spec) if rank else nullcontext
        with peers():
            core = EngineCore(
                config, rank.executor() if rank else Executor.get_class(config), log_stats=False
            )
        _without_amx_attention(core.model_executor.driver_worker.worker.model_runner)
        return cls(spec, core, peers)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────

    def add(
        self, request_id: str, prompt: Sequence[int], sampling: Sampling, end_ids: Collection[int]
    ) -> None:
        """Queue a request that vLLM samples until one of `end_ids`, `max_tokens`, or the context's end.

        Stop strings are the caller's business. `prompt` must be shorter than `max_model_len`.
        """
        from vllm.sampling_params import SamplingParams

        room = self.spec.max_model_len - len(prompt)
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
            stop_token_ids=sorted(end_ids),
            logprobs=sampling.top_logprobs,
            detokenize=False,
            **sampling.extra,
        )
        self._add(request_id, prompt, params)

    def add_forced(
        self, request_id: str, prompt: Sequence[int], watch: Collection[int] = frozenset()
    ) -> None:
        """Queue a request whose every token the caller will choose, by `finish` and `feed`.

        Of the prompt's tokens with an index in `watch`, `seen` tells what the model expected there; such a
        request computes its whole prompt."""
        from vllm.sampling_params import SamplingParams

        params = SamplingParams(
            temperature=0,
            max_tokens=self.spec.max_model_len,
            ignore_eos=True,
            detokenize=False,
            skip_reading_prefix_cache=bool(watch),
        )
        if watch:
            self.watch(request_id, watch)
        self._add(request_id, prompt, params)

    def cached(self, request_id: str) -> int:
        """How many of the request's first tokens were read from the prefix cache when it started; 0 before."""
        return self._cached.get(request_id, 0)

    def watch(self, request_id: str, indices: Collection[int]) -> None:
        """Of a forced request's next tokens, prompt and later ones counted together, `seen` tells what the
        model expected at `indices`: say for all but the first of those about to be fed."""
        self._watched[request_id] = frozenset(indices)
        self._seen[request_id] = {}

    def seen(self, request_id: str) -> dict[int, torch.Tensor]:
        """By index of the watched tokens computed by now, the logits before them, shape (vocabulary,).
        Forgets them."""
        self._watched.pop(request_id, None)
        return self._seen.pop(request_id, {})

    def look_inside(self, request_id: str, layers: Sequence[int]) -> None:
        """From now on `inside` has what these layers (see `engines.inside`) give at the request's last token.
        Raises `MethodError` for one the model has not."""
        self._inside.look(request_id, layers)

    def inside(self, request_id: str) -> torch.Tensor:
        """Hidden states of a request that looks and has a row in this step: shape (layers, d), its own to
        keep. Call between `forward` and `finish`."""
        return self._inside.states(request_id)

    def visit(self, request_id: str, layers: Sequence[int], visitor: Visitor) -> None:
        """Have a request that is about to be added visited at these layers: see `engines.inside`. Raises
        `MethodError` for one the model has not."""
        self._inside.visit(request_id, layers, visitor)

    def _add(self, request_id: str, prompt: Sequence[int], params: Any) -> None:
        from vllm.v1.request import Request

        request = Request(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            sampling_params=params,
            pooling_params=None,
            cache_salt=request_id if self._inside.visited(request_id) else None,
            block_hasher=self._core.request_block_hasher,
        )
        self._core.add_request(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests, wherever they stand; unknown ids are ignored. Call between `finish` and
        `forward`."""
        self._core.abort_requests(list(request_ids))
        for request_id in request_ids:
            self._watched.pop(request_id, None)
            self._seen.pop(request_id, None)
            self._cached.pop(request_id, None)
            self._inside.forget(request_id)

    def feed(self, request_id: str, ids: Sequence[int]) -> None:
        """Wake a stalled request with `ids`: the next `forward` computes them all and yields its logits
        again.

        Call between `finish` and `forward`; vLLM keeps two copies of a request's tokens (scheduler and
        runner), and a third in the runner's batch until the step in which the request is not scheduled."""
        runner = self._runner
        self._scheduler.requests[request_id].append_output_token_ids(list(ids))
        cached = runner.requests.get(request_id)
        if cached is None:  # preempted before it ever ran: the scheduler's copy is the only one
            return
        cached.output_token_ids.extend(ids)
        batch = runner.input_batch
        row = batch.req_id_to_index.get(request_id)
        if row is not None:
            start = batch.num_tokens_no_spec[row]
            batch.token_ids_cpu[row, start : start + len(ids)] = ids
            batch.is_token_ids[row, start : start + len(ids)] = True
            batch.num_tokens_no_spec[row] = start + len(ids)

    def rewind(self, request_id: str, keep: int) -> bool:
        """Let a stalled request forget all but its first `keep` tokens, prompt included; then `feed` it. Below
        its prompt's length, the prompt's rest is computed again.

        False, and nothing changed, where it cannot: not all is computed (it was preempted), what would be
        written over belongs to another request as well, or a sliding window has dropped what would be needed.
        Such a request is to be aborted and added anew. Call between `finish` and `forward`."""
        request = self._scheduler.requests[request_id]
        if request.num_computed_tokens < request.num_tokens:
            return False
        stale = []
        for manager in self._scheduler.kv_cache_manager.coordinator.single_type_managers:
            size = manager.block_size
            dropped = manager.get_num_skipped_tokens(request.num_computed_tokens) // size
            if dropped > manager.get_num_skipped_tokens(keep) // size:
                return False
            full, cached = keep // size, manager.num_cached_block.get(request_id, 0)
            stale.append((manager, full, manager.req_to_blocks[request_id][full:cached]))
        if any(block.ref_cnt > 1 for _, _, blocks in stale for block in blocks):
            return False
        for manager, full, blocks in stale:
            # These blocks were filled, so that the prefix cache knows them by a text they will no longer hold.
            for block in blocks:
                manager.block_pool._maybe_evict_cached_block(block)  # noqa: SLF001  no public way
            if blocks:
                manager.num_cached_block[request_id] = full
        held = max(keep, request.num_prompt_tokens)
        outputs = held - request.num_prompt_tokens
        del request._all_token_ids[held:]  # noqa: SLF001  as vLLM's scheduler itself does for a session
        del request._output_token_ids[outputs:]  # noqa: SLF001
        del request.block_hashes[held // self._scheduler.hash_block_size :]
        request.num_computed_tokens = keep
        runner = self._runner
        if (state := runner.requests.get(request_id)) is not None:
            del state.output_token_ids[outputs:]
            state.num_computed_tokens = keep
        row = runner.input_batch.req_id_to_index.get(request_id)
        if row is not None:
            runner.input_batch.num_tokens_no_spec[row] = held
            runner.input_batch.num_computed_tokens_cpu[row] = keep
        return True

    # ── the step ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_work(self) -> bool:
        """Whether a step could do anything, clearing finished requests out of the runner included."""
        return bool(self._scheduler.has_requests())

    def forward(self) -> dict[str, torch.Tensor]:
        """Run the model over what the scheduler picked.

        Returns the logits row, shape (vocabulary,), of every request that now stands at a next token;
        requests still reading their prompt are absent. Rows are views that live until `finish`: copy what you
        keep. Returns `{}` when nothing ran; otherwise `finish` must follow."""
        scheduled = self._scheduler.schedule()
        self.crowded = not scheduled.total_num_scheduled_tokens and self.counts()[1] > 0
        for new in scheduled.scheduled_new_reqs:
            self._cached.setdefault(new.req_id, new.num_computed_tokens)
        with self._peers():
            early = self._core.model_executor.execute_model(scheduled)
            if early is not None:
                self._scheduler.update_from_output(scheduled, early)
                return {}
            self._scheduled = scheduled
            if self._watched:
                self._look()
        runner = self._runner
        logits = runner.execute_model_state.logits
        reading = runner.discard_request_mask.np
        return {rid: logits[i] for i, rid in enumerate(runner.input_batch.req_ids) if not reading[i]}

    def _look(self) -> None:
        """Keep the logits before watched tokens that this step computed."""
        runner = self._runner
        hidden = runner.execute_model_state.hidden_states
        counts = self._scheduled.num_scheduled_tokens
        for row, request_id in enumerate(runner.input_batch.req_ids):
            watched = self._watched.get(request_id)
            if watched is None or request_id not in counts:
                continue
            first = int(runner.input_batch.num_computed_tokens_cpu[row])
            # The hidden state of token i - 1 tells what is expected at i.
            here = [i for i in sorted(watched) if first <= i - 1 < first + counts[request_id]]
            if here:
                start = int(runner.query_start_loc.np[row]) - first
                logits = runner.model.compute_logits(hidden[[start + i - 1 for i in here]])
                self._seen[request_id].update(zip(here, logits.unbind(0), strict=True))

    def finish(self, forced: Mapping[str, Sequence[int]]) -> dict[str, Sampled]:
        """Complete the step begun by `forward`: force the ids of `forced`, let vLLM sample the rest and
        return those."""
        if self._scheduled is None:
            return {}
        scheduled, self._scheduled = self._scheduled, None
        self._forced = forced
        # A seeded request still reading its prompt: vLLM would draw for it, and then wind its generator back
        # by an offset, which CPU generators do not have (RuntimeError). So the generator sits this step out.
        generators = self._runner.input_batch.generators
        reading = self._runner.discard_request_mask.np
        resting = {row: generators.pop(row) for row in list(generators) if reading[row]}
        output = self._core.model_executor.sample_tokens(None)
        generators.update(resting)
        self._forced = {}
        logprobs, self._logprobs = self._logprobs, None
        rows = dict(output.req_id_to_index)
        results = self._scheduler.update_from_output(scheduled, output)
        sampled = {}
        for result in (item for group in results.values() for item in group.outputs):
            if result.request_id in forced:
                continue
            reason = None if result.finish_reason is None else str(result.finish_reason)
            chosen: float | None = None
            top: tuple[tuple[int, float], ...] = ()
            if logprobs is not None:
                row = rows[result.request_id]
                values = logprobs.logprobs[row].tolist()
                ids = logprobs.logprob_token_ids[row].tolist()
                chosen, top = values[0], tuple(zip(ids[1:], values[1:], strict=True))
            sampled[result.request_id] = Sampled(result.new_token_ids, reason, chosen, top)
        return sampled

    def _directed_sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        """The runner's sampler, with the rows of forced requests replaced.

        Log-probabilities are taken out here, since vLLM would line them up with the widened rows.
        """
        forced, runner = self._forced, self._runner
        requests = runner.input_batch.req_ids
        rows = {i: forced[rid] for i, rid in enumerate(requests) if rid in forced}
        reading = runner.discard_request_mask.np
        if rows and all(i in rows or reading[i] for i in range(len(requests))):
            output = _nothing_sampled(logits, len(requests))  # nobody waits for the sampler's choice
        else:
            output = self._sample(logits, spec_decode_metadata)
        self._logprobs, output.logprobs_tensors = output.logprobs_tensors, None
        if not forced:
            return output
        # At least two columns: vLLM reads a one-column row as one token, even where it says -1.
        width = max(2, *(len(ids) for ids in rows.values())) if rows else 2
        chosen = output.sampled_token_ids.new_full((output.sampled_token_ids.shape[0], width), PAD)
        chosen[:, :1] = output.sampled_token_ids[:, :1]
        for i, ids in rows.items():
            chosen[i] = chosen.new_tensor([*ids, *[PAD] * (width - len(ids))])
        output.sampled_token_ids = chosen
        return output

    # ── what the operator sees ──────────────────────────────────────────────────────────────────────────────

    def counts(self) -> tuple[int, int]:
        """Requests running and waiting in the scheduler."""
        running, waiting = self._scheduler.get_request_counts()
        return int(running), int(waiting)

    def kv_usage(self) -> float:
        """Share of the KV cache in use, in [0, 1]."""
        return float(self._scheduler.get_kv_cache_usage())

    def kv_tokens(self) -> int:
        """Tokens the KV cache holds."""
        config = self._core.vllm_config.cache_config
        groups = len(self._runner.kv_cache_config.kv_cache_groups)
        return int(config.num_gpu_blocks) // groups * int(config.block_size)

    def recover(self) -> None:
        """After a step that raised: forget all requests, and every cached prefix, which that step may have left
        unwritten."""
        self._scheduled, self._forced, self._logprobs = None, {}, None
        self._runner.execute_model_state = None
        self.abort(list(self._scheduler.requests))
        self._scheduler.reset_prefix_cache()
        self.crowded = False

    def close(self) -> None:
        """Release the model."""
        self._core.shutdown()


def _nothing_sampled(logits: Any, requests: int) -> Any:
    """A sampler's output whose every row will be replaced or discarded."""
    import torch
    from vllm.v1.outputs import SamplerOutput

    ids = torch.zeros((requests, 1), dtype=torch.int32, device=logits.device)
    return SamplerOutput(sampled_token_ids=ids, logprobs_tensors=None)


def prepare_environment() -> None:
    """Set what vLLM, torch and OpenMP read from the environment. OpenMP reads it once, when torch is first
    imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the CPU platform moves the model to a child
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the step cut in two is the V1 runner's
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # it would close every handler there is, ours too
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings name no remedy a user has
    logging.getLogger("vllm").setLevel(level.upper())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Threads that spin while they wait for each other are ruinous on cores that others use as well, and gateway
    # workers are such others: beside one busy process a step of Gemma took up to 2.4 s. So they sleep, libgomp's
    # after some microseconds, libiomp5's as `engines.waiting` tells them. A machine that does nothing else may
    # set OMP_WAIT_POLICY=ACTIVE.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _place(config: Any, name: str, wanted: str) -> None:
    """Have vLLM run the model on the device `wanted`, whose number its executor reads here. Raises `SettingsError`
    for a kind of device that this vLLM is not built for."""
    import torch
    from vllm.platforms import current_platform

    device = torch.device(wanted)
    if device.type != current_platform.device_type:
        raise SettingsError(
            f"models.{name}.engine.device: there is no {wanted!r} for this vLLM, which runs models on "
            f"{current_platform.device_type}. Leave it out, or install a vLLM built for {device.type}."
        )
    config.device_config.device = device


def _without_amx_attention(runner: Any) -> None:
    """Use the AVX-512 attention kernels where vLLM 0.32 picked the AMX ones (CPU, bfloat16).

    On the AMX path SmolLM2-135M (9 query heads over 3 key heads, head size 64) answers nonsense from the
    first token, while the same model in bfloat16 on the other kernels, in float32, or in transformers answers
    well. Decoding is as fast."""
    for builder in (b for groups in runner.attn_groups for group in groups for b in group.metadata_builders):
        if getattr(builder, "isa", None) == "amx":
            builder.isa = "vec"
            builder._set_isa_to_layers(builder.layer_names)  # noqa: SLF001  no public way
