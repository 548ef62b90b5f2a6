"""States that stay in their stored form until their layers are wanted: fewer bytes cross the bus, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from nnm_core.states.state import LayerStates, Origin, State


class Packed(Protocol):
    """Keys and values of all layers in some form, any run of layers of which can be had apart."""

    @property
    def layers(self) -> int:
        """How many layers there are."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the form."""
        ...

    def part(self, first: int, last: int) -> Sequence[Tensor]:
        """What the layers ``first ... last - 1`` are made of, as it lies in the store."""
        ...

    def unpack(self, part: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, kv_heads, tokens, head_dim] of a part, wherever that lies now; only enqueues work.

        Args:
            tokens: how many are wanted, from the first one on.
        """
        ...


class PackedState(State):
    """A `State` whose keys and values are unpacked on `device` when somebody asks for them.

    `nnm_core.states.transfer` does not ask: it brings the packed form to the accelerator and unpacks it there, some
    layers at a time.

    Attributes:
        packed: the stored form.
        device: where `layers` are wanted.
    """

    def __init__(
        self, token_ids: tuple[int, ...], start: int, left: str, packed: Packed, device: torch.device, origin: Origin
    ) -> None:
        # The base is frozen, and its `layers` are computed here only if somebody asks for them.
        for name, value in {
            "token_ids": token_ids, "start": start, "left": left, "packed": packed, "device": device, "origin": origin
        }.items():  # fmt: skip
            object.__setattr__(self, name, value)

    packed: Packed
    device: torch.device

    @cached_property
    def layers(self) -> tuple[LayerStates, ...]:
        """See `State`."""
        later = self.device.type == "cuda"  # the stream keeps the order
        part = [tensor.to(self.device, non_blocking=later) for tensor in self.packed.part(0, self.packed.layers)]
        return tuple(zip(*self.packed.unpack(part, len(self.token_ids)), strict=True))

    def head(self, length: int) -> State:
        """See `State`."""
        if length == len(self.token_ids):
            return self
        return PackedState(self.token_ids[:length], self.start, self.left, self.packed, self.device, self.origin)

    def only(self, kept: Tensor) -> State:
        """See `State`."""
        return self._plain().only(kept)

    def among(self, token_ids: tuple[int, ...], kept: Tensor, codec: str) -> State:
        """See `State`."""
        return self._plain().among(token_ids, kept, codec)

    def as_fused(self) -> State:
        """See `State`."""
        origin = replace(self.origin, fused=True)
        return PackedState(self.token_ids, self.start, self.left, self.packed, self.device, origin)

    def _plain(self) -> State:
        return State(self.token_ids, self.start, self.left, self.layers, origin=self.origin)
