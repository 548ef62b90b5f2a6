"""Read token rows once and keep what the reading leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress

import torch
from torch import Tensor, nn

from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import deferred
from nnm_core.states.cache import Recorded, RecordingCache
from nnm_core.states.state import ROOT, PlacedState, State
from nnm_core.states.transfer import HostState, uniform

EMPTY: PlacedState = PlacedState(ROOT, 0, ())


@torch.inference_mode()
def capture(
    model: LoadedModel,
    rows: Sequence[Sequence[int]],
    left: PlacedState = EMPTY,
    *,
    residual_layer: int | None = None,
    base: nn.Module | None = None,
) -> list[State]:
    """States of `rows` of token ids, each computed behind the same `left` context, in one forward pass.

    Rows are padded on the right: with a causal mask no token sees the padding, so no mask is needed for it.

    Args:
        rows: non-empty rows of token ids.
        left: the placed state of everything before them.
        residual_layer: keep `State.residual` too: the residual stream before this layer less the one before the first.
        base: a decoder that shares the model's layers and stands in for its own.
    """
    decoder = model.hf.base_model if base is None else base
    wanted = {} if residual_layer is None else {"output_hidden_states": True}
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=model.device)
    rotary = model.positions.rotary
    stream: Tensor | None = None
    with deferred(rotary) if rotary else nullcontext(None) as rotation, suppress(Recorded):
        cache = RecordingCache(model.layers, rotation, capacity=left.length + width, states_only=residual_layer is None)
        _fill(cache, left, rows=len(rows))
        output = decoder(input_ids=ids, past_key_values=cache, use_cache=True, **wanted)
        if residual_layer is not None:
            stream = output.hidden_states[residual_layer] - output.hidden_states[0]
    recorded = cache.recorded()
    states = []
    for i, row in enumerate(rows):
        layers = tuple((_cut(k, i, row), _cut(v, i, row)) for k, v in recorded)
        residual = None if stream is None else stream[i, : len(row)].clone()
        states.append(State(tuple(row), left.length, left.name, layers, residual))
    return states


def place(model: LoadedModel, state: State, start: int) -> PlacedState:
    """`state` as it is to be attended at positions ``start ...``; on a GPU this is done when it is copied into a cache.

    Raises:
        PositionError: if the model's position family does not allow that place.
    """
    model.positions.check_move(state.start, start, len(state.token_ids))
    if comes_late(model) and uniform(state) and state.kept is None:
        return HostState(model, state, start)
    layers = [(key.to(model.device), value.to(model.device)) for key, value in state.layers]
    keys = model.positions.place([key for key, _ in layers], start, state.kept)
    placed = tuple(zip(keys, (value for _, value in layers), strict=True))
    skipped = 0 if state.kept is None else len(state.token_ids) - len(state.kept)
    return PlacedState(state.chain, len(state.token_ids), placed, state.origin, skipped)


def comes_late(model: LoadedModel) -> bool:
    """Whether states are rotated on the way into a cache, on the device, and not when they are placed."""
    return model.device.type == "cuda"


def _fill(cache: RecordingCache, left: PlacedState, *, rows: int) -> None:
    """Let all rows see what is before them."""
    for layer, (key, value) in zip(cache.placed, left.layers, strict=False):
        layer.append(key.expand(rows, *key.shape), value.expand(rows, *value.shape))


def _cut(states: Tensor, row: int, token_ids: Sequence[int]) -> Tensor:
    """One row's real tokens, in memory of their own so that the padded batch can be freed."""
    return states[row, :, : len(token_ids)].clone()
