"""Looking inside a model while it runs: hidden states at the token whose logits a step yields.

Layers are numbered as in transformers' `hidden_states`: 0 is what the first block reads, l what the l-th block
gives, and the last one (also FINAL, -1) what the final norm makes of it, which is what the head reads.

    engine.look_inside(request_id, (12, FINAL))     # once, when the request is added
    rows = engine.forward()
    engine.inside(request_id)                       # (2, d), for a request that has a row

The final states of a step's rows lie in the model runner anyway. Other layers are read by hooks on the blocks,
which exist while some request asks for their layer, and copy the rows of those requests alone: before a block's
fused norms write over its input. Nobody asks, nothing is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FINAL", "Inside"]

FINAL = -1
"""The output of the final norm."""


class Inside:
    """Of one model runner: who looks at which layers, and what this step showed them."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._asked: dict[str, tuple[int, ...]] = {}
        self._hooks: dict[int, Any] = {}
        self._seen: dict[int, tuple[list[str], Tensor]] = {}
        """By layer, the requests that asked for it in this step's order, and their rows."""

    def look(self, request_id: str, layers: Sequence[int]) -> None:
        """Show the request these layers from now on. Raises `MethodError` for one the model has not."""
        wanted = tuple(layers)
        if set(wanted) != {FINAL}:
            blocks = self._blocks()
            count = len(blocks)
            wanted = tuple(FINAL if layer == count else layer for layer in layers)
            if missing := [layer for layer in wanted if not FINAL <= layer < count]:
                raise MethodError(f"the model has layers 0 to {count}, and no {missing[0]}")
            for layer in set(wanted) - self._hooks.keys() - {FINAL}:
                hook = blocks[layer].register_forward_pre_hook(self._hook(layer), with_kwargs=True)
                self._hooks[layer] = hook
        self._asked[request_id] = wanted

    def forget(self, request_id: str) -> None:
        """The request is gone. Unknown ids are ignored."""
        if self._asked.pop(request_id, None) is None:
            return
        wanted = {layer for layers in self._asked.values() for layer in layers}
        for layer in self._hooks.keys() - wanted:
            self._hooks.pop(layer).remove()
            self._seen.pop(layer, None)

    def states(self, request_id: str) -> Tensor:
        """What it asked for, shape (layers, d), in the model's type; a copy. For a request that has a row."""
        import torch

        return torch.stack([self._state(request_id, layer) for layer in self._asked[request_id]])

    def _state(self, request_id: str, layer: int) -> Tensor:
        state: Tensor
        if layer == FINAL:
            runner = self._runner
            row = runner.input_batch.req_id_to_index[request_id]
            state = runner.execute_model_state.sample_hidden_states[row]
        else:
            names, rows = self._seen[layer]
            state = rows[names.index(request_id)]
        return state

    def _hook(self, layer: int) -> Any:
        def see(block: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden, residual = (_argument(name, given, named) for name in ("hidden_states", "residual"))
            ends, batch = self._runner.query_start_loc.np, self._runner.input_batch.req_ids
            asking = [(i, name) for i, name in enumerate(batch) if layer in self._asked.get(name, ())]
            last = [int(ends[i + 1]) - 1 for i, _ in asking]
            state = hidden[last] if residual is None else hidden[last] + residual[last]
            self._seen[layer] = [name for _, name in asking], state

        return see

    def _blocks(self) -> Any:
        """The model's blocks. Models that read more than text hold a language model."""
        model = self._runner.get_model()
        model = model.get_language_model() if hasattr(model, "get_language_model") else model
        blocks = getattr(getattr(model, "model", None), "layers", None)
        if blocks is None:
            raise MethodError(f"the blocks of a {type(model).__name__} are not where they are looked for")
        return blocks


PLACES = {"positions": 0, "hidden_states": 1, "residual": 2}
"""The arguments of a block in vLLM's decoders."""


def _argument(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return named[name] if name in named else given[PLACES[name]]
