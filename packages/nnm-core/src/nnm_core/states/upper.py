"""Reading tokens with the residual stream replaced before one layer: what factorised storage is decoded with.

The decoder's list of layers is stood in for by one whose lower part runs or passes through and then hands on the wanted
residual stream. It stands in a shallow copy of the decoder that shares every layer, so the model itself, which other
threads are using, stays untouched, and nothing about the architecture has to be known. `check_upper` proves on the
model at hand that the keys and values above come out as in an ordinary pass.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnm_core.errors import InvalidInputError, UnsupportedModelError
from nnm_core.model.load import LoadedModel
from nnm_core.states.capture import EMPTY, capture
from nnm_core.states.state import PlacedState, State

_PROBE = 8
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class _Tap(nn.Module):
    """One layer below the replaced stream: run or passed through; the last of them hands on the new stream."""

    def __init__(self, layer: nn.Module, *, run: bool, stream: _Stream, last: bool) -> None:
        super().__init__()
        # Not a submodule: the layer belongs to the model. Attributes that a decoder asks its layers for are its own.
        self.__dict__["layer"] = layer
        self._run, self._stream, self._last = run, stream, last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._stream.entry is None:
            self._stream.entry = hidden
        output = self.layer(*args, **kwargs) if self._run else hidden
        if not self._last:
            return output
        wanted = self._stream.entry + self._stream.delta
        return (wanted, *output[1:]) if isinstance(output, tuple) else wanted


class _Stream:
    """The residual stream before the first layer, once it is known, and what is added to it."""

    def __init__(self, delta: Tensor) -> None:
        self.delta = delta
        self.entry: Tensor | None = None


def read_above(
    model: LoadedModel,
    token_ids: Sequence[int],
    delta: Tensor,
    *,
    layer: int,
    left: PlacedState = EMPTY,
    lower: bool = True,
) -> State:
    """The state of `token_ids` whose layers from `layer` on are computed from ``embedding + delta``.

    Args:
        delta: [tokens, width], the residual stream before `layer` less the one before the first layer.
        lower: compute the layers below from the token ids too; else their keys and values are zeros.
    """
    stream = _Stream(delta.to(device=model.device, dtype=model.dtype)[None])
    path, layers = layer_list(model.hf.base_model, model.layers)
    taps = [_Tap(layers[i], run=lower, stream=stream, last=i == layer - 1) for i in range(layer)]
    base = standing_in(model.hf.base_model, path.split("."), nn.ModuleList([*taps, *layers[layer:]]))
    return capture(model, [token_ids], left, base=base)[0]


def check_upper(model: LoadedModel, layer: int) -> None:
    """Prove that `read_above` repeats an ordinary pass on this model.

    Raises:
        InvalidInputError: it does not, or there is no such layer.
    """
    if not 0 < layer < model.layers:
        raise InvalidInputError(
            f"{model.name} has {model.layers} layers; the residual stream cannot be kept before layer {layer}.",
            hint=f"Use a layer from 1 to {model.layers - 1}.",
        )
    ids = [(index * 7919 + 11) % int(model.hf.config.get_text_config().vocab_size) for index in range(_PROBE)]
    plain = capture(model, [ids], residual_layer=layer)[0]
    try:
        if plain.residual is None:
            raise ValueError("it does not show its residual stream")
        again = read_above(model, ids, plain.residual, layer=layer, lower=False)
        distance = max(
            float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1.0))
            for ours, own in zip(again.layers[layer:], plain.layers[layer:], strict=True)
            for a, b in zip(ours, own, strict=True)
        )
        if not distance <= _TOLERANCE.get(model.dtype, 2e-1):
            raise ValueError(f"its upper layers come out differently ({distance:.2g})")
    except (UnsupportedModelError, ValueError, TypeError, RuntimeError, AttributeError, LookupError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(
            f"The residual stream of {model.name} cannot stand in for its lower layers: {first_line}.",
            hint="Use another codec; native and tokens suit every model.",
        ) from error


def layer_list(root: nn.Module, layers: int) -> tuple[str, nn.ModuleList]:
    """The decoder's list of so many layers, and where it stands in `root`.

    Raises:
        UnsupportedModelError: there is none.
    """
    for path, module in root.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return path, module
    raise UnsupportedModelError(f"{type(root).__name__} has no list of {layers} layers.")


def standing_in(module: nn.Module, path: Sequence[str], layers: nn.ModuleList) -> nn.Module:
    """A shallow copy of `module` in which `layers` stand at `path`; everything else is shared."""
    copied = copy.copy(module)
    inner = layers if len(path) == 1 else standing_in(module._modules[path[0]], path[1:], layers)  # type: ignore[arg-type]  # a path of named_modules has no None
    copied._modules = {**module._modules, path[0]: inner}
    return copied
