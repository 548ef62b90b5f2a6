"""``native``: the compute type as it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nnm_core.model.load import LoadedModel
from nnm_core.states.codecs.base import TYPICAL_TOKENS, Reader, shapes_of, token_ids, token_tensor
from nnm_core.states.state import State


class NativeCodec:
    """The compute type, bit for bit: 2 x layers x kv_heads x head_dim values a token. Largest error: none."""

    name = "native"
    lossless = True
    whole = True
    residual_layer: int | None = None

    def check(self, model: LoadedModel) -> None:
        """Every model's states can be kept as they are."""

    def bytes_per_token(self, model: LoadedModel, tokens: int = TYPICAL_TOKENS) -> float:
        """See `Codec`."""
        shapes = shapes_of(model)
        return 4.0 + shapes.values_per_token * shapes.itemsize

    def encode(self, state: State) -> dict[str, Tensor]:
        """``token_ids`` [tokens] int32, then ``key.<layer>`` and ``value.<layer>`` [kv_heads, tokens, head_dim]."""
        tensors = {"token_ids": token_tensor(state)}
        for index, (key, value) in enumerate(state.layers):
            tensors[f"key.{index}"] = key.contiguous()
            tensors[f"value.{index}"] = value.contiguous()
        return tensors

    def decode(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str], reader: Reader | None = None) -> State:
        """The same tensors again, without a copy where the store maps files into memory."""
        layers = tuple((tensors[f"key.{i}"], tensors[f"value.{i}"]) for i in range(int(manifest["layers"])))
        return State(token_ids(tensors), int(manifest["start"]), manifest["left"], layers)
