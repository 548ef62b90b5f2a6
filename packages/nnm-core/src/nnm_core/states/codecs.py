"""How a state lies on disk. `native` keeps the compute type as it is; lossy codecs join it here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from nnm_core.states.state import State


class Codec(Protocol):
    """Turns a state into named tensors and back."""

    name: str

    def encode(self, state: State) -> dict[str, Tensor]:
        """Tensors to store, layer-major, token ids first."""
        ...

    def decode(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str]) -> State:
        """The state, from what `encode` and `manifest_of` gave."""
        ...


class NativeCodec:
    """The compute type, bit for bit: 2 x layers x kv_heads x head_dim values a token."""

    name = "native"

    def encode(self, state: State) -> dict[str, Tensor]:
        """``token_ids`` [tokens] int32, then ``key.<layer>`` and ``value.<layer>`` [kv_heads, tokens, head_dim]."""
        tensors = {"token_ids": torch.tensor(state.token_ids, dtype=torch.int32)}
        for index, (key, value) in enumerate(state.layers):
            tensors[f"key.{index}"] = key.contiguous()
            tensors[f"value.{index}"] = value.contiguous()
        return tensors

    def decode(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str]) -> State:
        """The same tensors again, without a copy where the store maps files into memory."""
        layers = tuple((tensors[f"key.{i}"], tensors[f"value.{i}"]) for i in range(int(manifest["layers"])))
        ids = tuple(tensors["token_ids"].tolist())
        return State(ids, int(manifest["start"]), manifest["left"], layers)


def manifest_of(state: State, codec: Codec, fingerprint: str) -> dict[str, str]:
    """What is stored beside the tensors, and what a state must match to be used."""
    return {
        **expectation(codec, fingerprint),
        "left": state.left,
        "start": str(state.start),
        "layers": str(len(state.layers)),
        "tokens": str(len(state.token_ids)),
    }


def expectation(codec: Codec, fingerprint: str) -> dict[str, str]:
    """The manifest entries without which a stored state is a miss."""
    return {"states": "1", "codec": codec.name, "fingerprint": fingerprint}
