"""What a codec is, and what is stored beside the tensors that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import embedding_weight
from nnm_core.states.state import PlacedState, State

FORMAT = "1"
# Length of the memory that `bytes_per_token` speaks of: what does not grow with the tokens is shared by so many.
TYPICAL_TOKENS = 256


@dataclass(frozen=True)
class Reader:
    """What decoding may need beside the stored tensors.

    Attributes:
        model: where states belong; codecs that keep less than the states compute the rest with it.
        left: the state of the canonical left context, made on demand.
    """

    model: LoadedModel
    left: Callable[[], PlacedState]


class Codec(Protocol):
    """Turns a state into named tensors and back.

    Attributes:
        name: as it is written in manifests, receipts and `NNM.open(codec=...)`; whatever changes the result is in it.
        lossless: whether a decoded state gives the same greedy tokens as the original.
        whole: whether a decoded state has all layers of all its tokens; others are not composed, batched or re-ranked.
        residual_layer: the layer whose incoming residual stream `State.residual` has to hold, or None.
    """

    name: str
    lossless: bool
    whole: bool
    residual_layer: int | None

    def check(self, model: LoadedModel) -> None:
        """Raise `InvalidInputError` if states of this model cannot be kept in this form."""
        ...

    def bytes_per_token(self, model: LoadedModel, tokens: int = TYPICAL_TOKENS) -> float:
        """Stored bytes for each token of a memory of `tokens` tokens, without the file's header."""
        ...

    def encode(self, state: State) -> dict[str, Tensor]:
        """Tensors to store, ``token_ids`` [tokens] int32 first."""
        ...

    def decode(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str], reader: Reader | None = None
    ) -> State | None:
        """The state, from what `encode` and `manifest_of` gave.

        Args:
            reader: on whose device the state is wanted, and with which the missing parts are computed.

        Returns:
            None where something has to be computed behind a left context that is not the reader's.
        """
        ...


@dataclass(frozen=True)
class Shapes:
    """Sizes of one model's states.

    Attributes:
        layers: for each layer kv heads, and length of a key and of a value.
        width: of the residual stream.
        itemsize: bytes of one number in the compute type.
    """

    layers: tuple[tuple[int, int, int], ...]
    width: int
    itemsize: int

    @property
    def values_per_token(self) -> int:
        """Numbers that a token's keys and values are made of."""
        return sum(heads * (key + value) for heads, key, value in self.layers)


def shapes_of(model: LoadedModel) -> Shapes:
    """Measured with one token, like everything that is known about a model here."""
    from nnm_core.states.capture import capture

    state = capture(model, [[0]])[0]
    layers = tuple((key.shape[0], key.shape[2], value.shape[2]) for key, value in state.layers)
    width = embedding_weight(model.hf).shape[1]
    return Shapes(layers, width, torch.empty(0, dtype=model.dtype).element_size())


def uniform_shapes(model: LoadedModel, codec: str) -> Shapes:
    """The shapes, if all layers have the same; their states can then be processed as one tensor.

    Raises:
        InvalidInputError: they differ.
    """
    shapes = shapes_of(model)
    if len(set(shapes.layers)) != 1:
        raise InvalidInputError(
            f"The codec {codec!r} needs layers of one shape; those of {model.name} differ.",
            hint="Use codec='native' or codec='tokens' with this model.",
        )
    return shapes


def token_tensor(state: State) -> Tensor:
    """``token_ids`` as they are stored."""
    return torch.tensor(state.token_ids, dtype=torch.int32)


def token_ids(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The token ids again."""
    return tuple(tensors["token_ids"].tolist())


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def manifest_of(state: State, codec: Codec, fingerprint: str) -> dict[str, str]:
    """What is stored beside the tensors, and what a state must match to be used."""
    return {
        **expectation(codec, fingerprint),
        "left": state.left,
        "start": str(state.start),
        "layers": str(len(state.layers)),
        "tokens": str(len(state.token_ids)),
        "dtype": str(state.layers[0][0].dtype).removeprefix("torch."),
    }


def expectation(codec: Codec, fingerprint: str) -> dict[str, str]:
    """The manifest entries without which a stored state is a miss."""
    return {"states": FORMAT, "codec": codec.name, "fingerprint": fingerprint}


def dtype_of(manifest: Mapping[str, str]) -> torch.dtype:
    """The compute type that the state was captured in."""
    dtype = getattr(torch, manifest["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise InvalidInputError(f"A stored state is of the type {manifest['dtype']!r}, which torch does not have.")
    return dtype
