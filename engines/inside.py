"""Looking inside a model while it runs: hidden states at the token whose logits a step yields.

Layers are numbered as in transformers' `hidden_states`: 0 is what the first block reads, l what the l-th block
gives, and the last one (also FINAL, -1) what the final norm makes of it, which is what the head reads.

    engine.look_inside(request_id, (12, FINAL))     # once, when the request is added
    rows = engine.forward()
    engine.inside(request_id)                       # (2, d), for a request that has a row

    engine.visit(request_id, (10, 20, 30), visitor)    # before it is added: visitor(layer, first, states)

A visitor sees the states of all the request's tokens that a step computes, `first` being the index of the first of
them, shape (n, d), and may return what is to be added to them there (layer l: behind the l-th block, the last one
before the final norm). A request that is visited shares no prefix cache with others, since its keys are its own.

The final states of a step's rows lie in the model runner anyway. Other layers are read by hooks on the blocks,
which exist while some request asks for their layer, and copy the rows of those requests alone: before a block's
fused norms write over its input. Nobody asks, nothing is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    Visitor = Callable[[int, int, Tensor], Tensor | None]

__all__ = ["FINAL", "Inside"]

FINAL = -1
"""The output of the final norm."""


class Inside:
    """Of one model runner: who looks at which layers, and what this step showed them."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._asked: dict[str, tuple[int, ...]] = {}
        self._visits: dict[str, tuple[dict[int, int], Visitor]] = {}
        """By request: its number of a layer by the one here, and who visits."""
        self._hooks: dict[int, Any] = {}
        self._seen: dict[int, tuple[list[str], Tensor]] = {}
        """By layer, the requests that asked for it in this step's order, and their rows."""

    def look(self, request_id: str, layers: Sequence[int]) -> None:
        """Show the request these layers from now on. Raises `MethodError` for one the model has not."""
        wanted = tuple(layers)
        if set(wanted) != {FINAL}:
            wanted = self._numbers(layers)
            self._hang({*wanted} - {FINAL})
        self._asked[request_id] = wanted

    def visit(self, request_id: str, layers: Sequence[int], visitor: Visitor) -> None:
        """Have the request visited at these layers. Raises `MethodError` for one the model has not."""
        here = self._numbers(layers)
        self._hang({*here})
        self._visits[request_id] = (dict(zip(here, layers, strict=True)), visitor)

    def visited(self, request_id: str) -> bool:
        """Whether somebody visits it."""
        return request_id in self._visits

    def forget(self, request_id: str) -> None:
        """The request is gone. Unknown ids are ignored."""
        if self._asked.pop(request_id, None) is None and self._visits.pop(request_id, None) is None:
            return
        wanted = {layer for layers in self._asked.values() for layer in layers}
        wanted |= {layer for layers, _ in self._visits.values() for layer in layers}
        for layer in self._hooks.keys() - wanted:
            self._hooks.pop(layer).remove()
            self._seen.pop(layer, None)

    def _numbers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The layers, the last one as FINAL. Raises `MethodError`."""
        count = len(self._blocks())
        numbers = tuple(FINAL if layer == count else layer for layer in layers)
        if missing := [layer for layer in numbers if not FINAL <= layer < count]:
            raise MethodError(f"the model has layers 0 to {count}, and no {missing[0]}")
        return numbers

    def _hang(self, layers: set[int]) -> None:
        """Hook what reads these layers and is not hooked yet: a block, or the final norm."""
        for layer in layers - self._hooks.keys():
            reader = self._model().norm if layer == FINAL else self._blocks()[layer]
            self._hooks[layer] = reader.register_forward_pre_hook(self._hook(layer), with_kwargs=True)

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
        places = NORM if layer == FINAL else BLOCK

        def see(reader: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden, residual = (_argument(name, places, given, named) for name in places)
            ends, batch = self._runner.query_start_loc.np, self._runner.input_batch.req_ids
            for i, name in enumerate(batch):
                if name in self._visits:
                    self._call(name, layer, hidden, residual, (i, int(ends[i]), int(ends[i + 1])))
            if layer == FINAL:
                return
            asking = [(i, name) for i, name in enumerate(batch) if layer in self._asked.get(name, ())]
            last = [int(ends[i + 1]) - 1 for i, _ in asking]
            state = hidden[last] if residual is None else hidden[last] + residual[last]
            self._seen[layer] = [name for _, name in asking], state

        return see

    def _call(self, name: str, layer: int, hidden: Any, residual: Any, where: tuple[int, int, int]) -> None:
        """Let the request's visitor see its rows, and add what it returns."""
        numbers, visitor = self._visits[name]
        row, start, end = where
        if layer not in numbers or start == end:
            return
        state = hidden[start:end] if residual is None else hidden[start:end] + residual[start:end]
        first = int(self._runner.input_batch.num_computed_tokens_cpu[row])
        change = visitor(numbers[layer], first, state)
        if change is not None:
            stream = hidden if residual is None else residual
            stream[start:end] += change.to(stream.dtype)

    def _model(self) -> Any:
        """The part that holds blocks and final norm. Models that read more than text hold a language model."""
        model = self._runner.get_model()
        model = model.get_language_model() if hasattr(model, "get_language_model") else model
        inner = getattr(model, "model", None)
        if getattr(inner, "layers", None) is None:
            raise MethodError(f"the blocks of a {type(model).__name__} are not where they are looked for")
        return inner

    def _blocks(self) -> Any:
        """The model's blocks."""
        return self._model().layers


BLOCK = {"hidden_states": 1, "residual": 2}
"""The arguments of a block in vLLM's decoders, behind the positions."""
NORM = {"x": 0, "residual": 1}


def _argument(name: str, places: dict[str, int], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return named[name] if name in named else given[places[name]]
