"""``int8`` and ``int4``: keys per channel before rotation, values per token (KIVI, arXiv 2402.02750, section 3).

A channel of the keys has its own range, the same in all tokens and much wider in some channels than in others, as long
as the rotation has not mixed pairs of channels (KVQuant, arXiv 2401.18079, section 3.1); so each channel of a run of
tokens is one block. A token's values have a range of their own: its channels form the blocks. The first tokens, which
attract attention out of proportion, stay in the compute type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.model.load import LoadedModel
from nnm_core.states.codecs.base import (
    TYPICAL_TOKENS,
    Reader,
    dtype_of,
    nbytes,
    token_ids,
    token_tensor,
    uniform_shapes,
)
from nnm_core.states.codecs.quantise import Quantised, dequantise, quantise
from nnm_core.states.packed import PackedState
from nnm_core.states.state import Origin, State

_PARTS = ("q", "scale", "zero")
_NAMES = tuple(f"{name}.{part}" for name in ("key", "value") for part in ("first", *_PARTS))
_SCALE_BYTES = 4  # scale and zero point in 16 bits each


@dataclass(frozen=True)
class IntegerSettings:
    """How states are cut into blocks.

    Attributes:
        bits: 8 or 4.
        tokens: how many tokens of one key channel form a block.
        channels: how many channels of one token's value form a block, at most.
        first: leading tokens that stay in the compute type.
    """

    bits: int
    tokens: int
    channels: int
    first: int


class IntegerCodec:
    """Keys and values as small integers. Largest error: half a step, (max - min) / (2^bits - 1) / 2 of its block."""

    lossless = False
    whole = True
    residual_layer: int | None = None

    def __init__(self, name: str, settings: IntegerSettings) -> None:
        self.name = name
        self.settings = settings

    def check(self, model: LoadedModel) -> None:
        """See `Codec`."""
        value = uniform_shapes(model, self.name).layers[0][2]
        if self.settings.bits == 4 and value % 2:
            raise InvalidInputError(
                f"The codec {self.name!r} packs two channels a byte; {model.name} has {value}.",
                hint="Use codec='int8'.",
            )

    def bytes_per_token(self, model: LoadedModel, tokens: int = TYPICAL_TOKENS) -> float:
        """See `Codec`."""
        shapes, settings = uniform_shapes(model, self.name), self.settings
        heads, key, value = shapes.layers[0]
        first = min(settings.first, tokens)
        blocks = -(-(tokens - first) // settings.tokens)
        width = _width(value, settings.channels)
        keys = blocks * key * (settings.tokens * settings.bits / 8 + _SCALE_BYTES)
        values = (tokens - first) * value * (settings.bits / 8 + _SCALE_BYTES / width)
        rows = len(shapes.layers) * heads
        return 4.0 + rows * (keys + values + first * (key + value) * shapes.itemsize) / tokens

    def encode(self, state: State) -> dict[str, Tensor]:
        """All layers in one tensor each: ``<key|value>.first`` [layers, kv_heads, first, head_dim], ``.q``, ``.scale``
        and ``.zero``, blocked as in `quantise`.
        """
        tensors = {"token_ids": token_tensor(state)}
        for name, dim, stack in zip(("key", "value"), (3, 4), _stacks(state), strict=True):
            first, rest = stack[:, :, : self.settings.first], stack[:, :, self.settings.first :]
            tensors[f"{name}.first"] = first.contiguous()
            if rest.shape[2]:
                found = quantise(self._blocked(name, rest), dim, self.settings.bits)
                tensors |= {f"{name}.{part}": getattr(found, part) for part in _PARTS}
        return tensors

    def decode(self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str], reader: Reader | None = None) -> State:
        """One vectorised pass over the whole stack of layers; on an accelerator it waits until the bytes are there."""
        ids, dtype = token_ids(tensors), dtype_of(manifest)
        packed = PackedIntegers(
            self.settings, {name: tensors[name] for name in _NAMES if name in tensors}, len(ids), dtype
        )
        origin = Origin(self.name, lossless=False, nbytes=nbytes(tensors))
        start, left = int(manifest["start"]), manifest["left"]
        if reader is not None and reader.model.device.type != "cpu":
            return PackedState(ids, start, left, packed, reader.model.device, origin)
        keys, values = packed.unpack(packed.part(0, packed.layers), len(ids))
        return State(ids, start, left, tuple(zip(keys, values, strict=True)), origin=origin)

    def _blocked(self, name: str, stack: Tensor) -> Tensor:
        """Keys [layers, heads, blocks, tokens, dim], the last block filled up with its last token; values
        [layers, heads, tokens, blocks, channels].
        """
        if name == "value":
            width = _width(stack.shape[3], self.settings.channels)
            return stack.reshape(*stack.shape[:3], -1, width)
        missing = -stack.shape[2] % self.settings.tokens
        filled = torch.cat([stack, stack[:, :, -1:].expand(-1, -1, missing, -1)], dim=2) if missing else stack
        return filled.reshape(*filled.shape[:2], -1, self.settings.tokens, filled.shape[3])


@dataclass(frozen=True)
class PackedIntegers:
    """All layers of a state as `IntegerCodec.encode` left them. Implements `Packed`.

    Attributes:
        settings: of the codec.
        tensors: of `_NAMES` those that there are, [layers, ...] each.
        tokens: of the whole state.
        dtype: the compute type.
    """

    settings: IntegerSettings
    tensors: Mapping[str, Tensor]
    tokens: int
    dtype: torch.dtype

    @property
    def layers(self) -> int:
        """See `Packed`."""
        return len(self.tensors["key.first"])

    @property
    def nbytes(self) -> int:
        """See `Packed`."""
        return nbytes(self.tensors)

    def part(self, first: int, last: int) -> Sequence[Tensor]:
        """See `Packed`."""
        return [tensor[first:last] for tensor in self.tensors.values()]

    def unpack(self, part: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
        """See `Packed`. Keys and values of one size lie in one block, layer by layer."""
        tensors = dict(zip(self.tensors, part, strict=True))
        first, other = tensors["key.first"], tensors["value.first"]
        if "key.q" not in tensors:
            return first[:, :, :tokens], other[:, :, :tokens]
        # Room for the whole last block: what stands behind the last token is cut off.
        room = first.shape[2] - (-(self.tokens - first.shape[2]) // self.settings.tokens) * self.settings.tokens
        layers, heads, _, dim = first.shape
        if other.shape == first.shape:
            block = first.new_empty((layers, 2, heads, room, dim), dtype=self.dtype)
            keys, values = block[:, 0], block[:, 1]
        else:
            keys, values = (
                first.new_empty((layers, heads, room, size), dtype=self.dtype) for size in (dim, other.shape[3])
            )
        self._fill("key", tensors, keys)
        self._fill("value", tensors, values)
        return keys[:, :, :tokens], values[:, :, :tokens]

    def _fill(self, name: str, tensors: Mapping[str, Tensor], out: Tensor) -> None:
        first = tensors[f"{name}.first"]
        stored = Quantised(*(tensors[f"{name}.{part}"] for part in _PARTS))
        out[:, :, : first.shape[2]] = first
        if name == "key":
            blocked = out[:, :, first.shape[2] :].unflatten(2, (-1, self.settings.tokens))
            dequantise(stored, blocked, 3, self.settings.bits)
        else:
            blocked = out[:, :, first.shape[2] : self.tokens].unflatten(3, (stored.q.shape[3], -1))
            dequantise(stored, blocked, 4, self.settings.bits)


def int8(name: str = "int8") -> IntegerCodec:
    """8 bits, blocks of 64."""
    return IntegerCodec(name, IntegerSettings(bits=8, tokens=64, channels=64, first=4))


def int4(name: str = "int4") -> IntegerCodec:
    """4 bits, blocks of 32."""
    return IntegerCodec(name, IntegerSettings(bits=4, tokens=32, channels=32, first=4))


def _stacks(state: State) -> Sequence[Tensor]:
    return [torch.stack(list(side)) for side in zip(*state.layers, strict=True)]


def _width(channels: int, wanted: int) -> int:
    """The largest block of at most `wanted` channels, of which a whole and even number fits (all, if none does)."""
    fitting = [size for size in range(2, min(channels, wanted) + 1, 2) if channels % size == 0]
    return fitting[-1] if fitting else channels
