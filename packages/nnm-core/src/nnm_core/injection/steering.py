"""Soft injection: one vector of a memory added to the residual stream before one layer, nothing else of it.

This is the original project's first idea of injection. It keeps one vector a memory in place of keys and values a
token; what it can carry is a direction, not a text, and `nnm sweep layers --route residual` shows what that is worth.

``h_layer(t) <- h_layer(t) + strength * v`` for every token t that is read or written, with ``v`` the residual stream of
the memory before the same layer, of its last token or averaged over its tokens.

Two implementations that must agree: the fast view, where the layer stands behind an adder in a decoder that shares
every parameter, and the lens (TransformerLens), where a hook adds the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnm_core.errors import InvalidInputError
from nnm_core.injection.generate import DecodeSettings, decode
from nnm_core.injection.prefill import forward
from nnm_core.model.lens import Lens
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache
from nnm_core.states.upper import layer_list, standing_in

Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class Steering:
    """A vector, where it is added and how strongly.

    Attributes:
        vector: [width].
        layer: it is added to the residual stream before this layer.
        strength: factor of the vector; 0 changes nothing.
    """

    vector: Tensor
    layer: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise InvalidInputError(f"There is no layer {self.layer}.", hint="Layers are counted from 0.")

    @property
    def added(self) -> Tensor:
        """What is added, [width]."""
        return self.vector * self.strength


@torch.inference_mode()
def memory_vector(
    model: LoadedModel, left: Sequence[int], token_ids: Sequence[int], *, layer: int, pool: Pool = "last"
) -> Tensor:
    """The residual stream of a memory before `layer`, [width], read behind the token ids `left`.

    Raises:
        InvalidInputError: no such layer or pooling, or no tokens.
    """
    _check(model, layer)
    if not token_ids:
        raise InvalidInputError("There are no tokens to make a vector of.")
    ids = torch.tensor([[*left, *token_ids]], device=model.device)
    output = model.hf.base_model(input_ids=ids, output_hidden_states=True, use_cache=False)
    return pooled(output.hidden_states[layer][0, len(left) :], pool)


def lens_vector(
    lens: Lens, left: Sequence[int], token_ids: Sequence[int], *, layer: int, pool: Pool = "last"
) -> Tensor:
    """The same through TransformerLens."""
    return pooled(lens.residuals([*left, *token_ids])[layer, len(left) :], pool)


def pooled(states: Tensor, pool: Pool) -> Tensor:
    """[tokens, width] to [width]."""
    if pool not in ("last", "mean"):
        raise InvalidInputError(f"pool is {pool!r}.", hint="Use last or mean.")
    return states[-1] if pool == "last" else states.float().mean(0).to(states.dtype)


class _Adder(nn.Module):
    """A layer whose input has the vector added."""

    def __init__(self, layer: nn.Module, added: Tensor) -> None:
        super().__init__()
        # Not a submodule: the layer belongs to the model. Attributes that a decoder asks its layers for are its own.
        self.__dict__["layer"] = layer
        self.__dict__["added"] = added

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer(hidden_states + self.added, *args, **kwargs)


def steered(model: LoadedModel, steering: Steering) -> LoadedModel:
    """The fast view of the same weights in which the vector is added in every pass; `model` stays as it is."""
    _check(model, steering.layer)
    path, layers = layer_list(model.hf, model.layers)
    added = steering.added.to(device=model.device, dtype=model.dtype)
    replaced = [_Adder(layer, added) if index == steering.layer else layer for index, layer in enumerate(layers)]
    hf: Any = standing_in(model.hf, path.split("."), nn.ModuleList(replaced))
    return replace(model, hf=hf, workspace={})


def lens_logits(lens: Lens, token_ids: Sequence[int], steering: Steering) -> Tensor:
    """Logits [tokens, vocabulary] of a row read through TransformerLens with the vector added by a hook."""

    def add(activation: Tensor, hook: Any) -> Tensor:
        return activation + steering.added.to(device=activation.device, dtype=activation.dtype)

    return lens.run_with_hooks(token_ids, [(f"blocks.{steering.layer}.hook_resid_pre", add)])


def answer_steered(model: LoadedModel, prompt: Sequence[int], steering: Steering, settings: DecodeSettings) -> str:
    """Answer `prompt` (token ids, without the memory in it) with the vector added at every token."""
    twin = steered(model, steering)
    cache = PlacedCache(model.layers, capacity=len(prompt) + settings.max_tokens)
    with torch.inference_mode():
        logits = forward(twin, cache, list(prompt))
    return "".join(step.text for step in decode(twin, cache, logits, settings))


def _check(model: LoadedModel, layer: int) -> None:
    if not 0 <= layer < model.layers:
        raise InvalidInputError(f"{model.name} has no layer {layer}.", hint=f"Use 0 to {model.layers - 1}.")
