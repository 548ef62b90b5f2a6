"""Cache layers for placed states: one buffer a layer, allocated once, written in place, read without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from nnm_core.model.positions import DeferredRotation


class PlacedLayer(DynamicLayer):
    """Keys and values [batch, kv_heads, capacity, head_dim] of which the first `length` tokens are filled.

    It keeps every token, also in sliding-window layers, where the mask does the windowing. transformers' own
    dynamic layer concatenates, and so copies all states at every decoded token; this one does not.
    """

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers in the shape and type of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.capacity = max(self.capacity, key_states.shape[-2])
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: Tensor) -> Tensor:
        return states.new_empty((*states.shape[:-2], self.capacity, states.shape[-1]))

    def append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Write states [batch, kv_heads, tokens, head_dim] behind those present; keys as they are to be attended."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.capacity:
            self._grow(end)
        assert self.keys is not None and self.values is not None  # set by lazy_initialization
        self.keys[..., self.length : end, :].copy_(key_states)
        self.values[..., self.length : end, :].copy_(value_states)
        self.length = end

    def _grow(self, needed: int) -> None:
        keys, values = self.view()
        self.capacity = max(needed, 2 * self.capacity)
        self.keys, self.values = self._buffer(keys), self._buffer(values)
        self.keys[..., : self.length, :].copy_(keys)
        self.values[..., : self.length, :].copy_(values)

    def view(self) -> tuple[Tensor, Tensor]:
        """The filled part of both buffers, without a copy."""
        assert self.keys is not None and self.values is not None  # only called on initialised layers
        return self.keys[..., : self.length, :], self.values[..., : self.length, :]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by attention modules with the states of new tokens."""
        self.append(key_states, value_states)
        return self.view()

    def get_seq_length(self) -> int:
        """Tokens present."""
        return self.length

    def reset(self) -> None:
        """Forget all tokens and free the buffers."""
        super().reset()
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``abs(tokens_to_remove)`` tokens."""
        self.length = max(0, self.length - abs(tokens_to_remove))


class RecordingLayer(PlacedLayer):
    """A placed layer that receives unrotated keys, keeps them as they came, and rotates them for attention."""

    def __init__(self, layer: int, rotation: DeferredRotation | None, capacity: int = 0) -> None:
        super().__init__(capacity)
        self.layer = layer
        self.rotation = rotation
        self.raw: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Record the states as they come, then place them."""
        self.raw.append((key_states, value_states))
        if self.rotation is not None:
            key_states = self.rotation.rotate_keys(self.layer, key_states)
        return super().update(key_states, value_states)


class PlacedCache(Cache):
    """A transformers cache of `PlacedLayer`s with room for `capacity` tokens."""

    def __init__(self, layers: int, capacity: int = 0) -> None:
        self.placed = [PlacedLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.placed))

    @property
    def length(self) -> int:
        """Tokens present."""
        return self.placed[0].length

    def nbytes(self) -> int:
        """Bytes that the buffers hold."""
        tensors = (t for layer in self.placed for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor))
        return sum(t.numel() * t.element_size() for t in tensors)


class RecordingCache(Cache):
    """A cache of `RecordingLayer`s: what a capture pass writes into."""

    def __init__(self, layers: int, rotation: DeferredRotation | None, capacity: int = 0) -> None:
        self.placed = [RecordingLayer(index, rotation, capacity) for index in range(layers)]
        super().__init__(layers=list(self.placed))

    def recorded(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer the unrotated keys and the values of all recorded tokens, [batch, kv_heads, tokens, dim].

        A layer that the pass has left out counts with zeros, in the shape of the last one.
        """
        like = self.placed[-1].raw
        none = [(torch.zeros_like(key), torch.zeros_like(value)) for key, value in like]
        rows = [layer.raw or none for layer in self.placed]
        return [(torch.cat([k for k, _ in raw], dim=-2), torch.cat([v for _, v in raw], dim=-2)) for raw in rows]
