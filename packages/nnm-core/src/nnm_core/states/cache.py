"""Cache layers for placed states: one buffer a layer, allocated once, written in place, read without copies."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from nnm_core.model.attention import AttentionIntervention
    from nnm_core.model.positions import DeferredRotation
    from nnm_core.states.state import LayerStates


class PlacedLayer(DynamicLayer):
    """Keys and values [batch, kv_heads, capacity, head_dim] of which the first `length` tokens are filled.

    It keeps every token, also in sliding-window layers, where the mask does the windowing. transformers' own
    dynamic layer concatenates, and so copies all states at every decoded token; this one does not.
    """

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self.capacity = capacity
        self.length = 0
        # Tokens that stand in the prompt and have been left out of the buffers: they count as positions.
        self.skipped = 0
        # Called before the states are looked at, as long as some may still be on their way.
        self.before: Callable[[], None] | None = None
        # (where new states go, how many tokens are attended): set during a pass whose shapes must not depend on
        # `length`, as in a CUDA graph; see `nnm_core.injection.static`.
        self.fixed: tuple[Tensor, int] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers in the shape and type of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.capacity = max(self.capacity, key_states.shape[-2])
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def lend(self, keys: Tensor, values: Tensor) -> None:
        """Use these buffers [batch, kv_heads, capacity, head_dim] in place of own ones."""
        self.dtype, self.device, self.capacity = keys.dtype, keys.device, keys.shape[-2]
        self.keys, self.values = keys, values
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

    def write(self, start: int, key_states: Tensor, value_states: Tensor) -> None:
        """Write states [batch, kv_heads, tokens, head_dim] at places ``start ...``, which must be within capacity."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # set by lazy_initialization
        end = start + key_states.shape[-2]
        self.keys[..., start:end, :].copy_(key_states)
        self.values[..., start:end, :].copy_(value_states)
        self.length = max(self.length, end)

    def scatter(self, positions: Tensor, key_states: Tensor, value_states: Tensor) -> None:
        """Write states [batch, kv_heads, tokens, head_dim] at places [batch, tokens], which must be within capacity."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            assert self.keys is not None and self.values is not None  # set by lazy_initialization
            self.keys.zero_()  # what is left out is masked, but even masked it must be a number
            self.values.zero_()
        self.wait()
        assert self.keys is not None and self.values is not None  # set by lazy_initialization
        where = positions[:, None, :, None]
        self.keys.scatter_(2, where.expand(key_states.shape), key_states)
        self.values.scatter_(2, where.expand(value_states.shape), value_states)

    def _grow(self, needed: int) -> None:
        keys, values = self.view()
        self.capacity = max(needed, 2 * self.capacity)
        self.keys, self.values = self._buffer(keys), self._buffer(values)
        self.keys[..., : self.length, :].copy_(keys)
        self.values[..., : self.length, :].copy_(values)

    def wait(self) -> None:
        """Have the states in the buffers before what the current stream does next; on a GPU this only enqueues work."""
        if self.before is not None:
            self.before()

    def view(self) -> tuple[Tensor, Tensor]:
        """The filled part of both buffers, without a copy."""
        self.wait()
        assert self.keys is not None and self.values is not None  # only called on initialised layers
        return self.keys[..., : self.length, :], self.values[..., : self.length, :]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by attention modules with the states of new tokens."""
        if self.fixed is None:
            self.append(key_states, value_states)
            return self.view()
        assert self.keys is not None and self.values is not None  # fixed passes run over buffers that were given
        self.wait()
        slots, reach = self.fixed
        self.keys.index_copy_(-2, slots, key_states)
        self.values.index_copy_(-2, slots, value_states)
        return self.keys[..., :reach, :], self.values[..., :reach, :]

    def get_seq_length(self) -> int:
        """Position of the next token."""
        return self.length + self.skipped

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask, and the position that the first one counts as: the gaps lie before them all."""
        return self.length + query_length, self.skipped

    def reset(self) -> None:
        """Forget all tokens and free the buffers."""
        super().reset()
        self.length = self.skipped = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``abs(tokens_to_remove)`` tokens."""
        self.length = max(0, self.length - abs(tokens_to_remove))


class Recorded(Exception):  # no error: the pass has done what it was for
    """Ends a pass when its last layer has its states: what the layer makes of them is not needed."""


class RecordingLayer(PlacedLayer):
    """A placed layer that receives unrotated keys, keeps them as they came, and rotates them for attention."""

    def __init__(
        self, layer: int, rotation: DeferredRotation | None, capacity: int = 0, *, ends_pass: bool = False
    ) -> None:
        super().__init__(capacity)
        self.layer = layer
        self.rotation = rotation
        self.ends_pass = ends_pass
        self.raw: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Record the states as they come, then place them."""
        self.raw.append((key_states, value_states))
        if self.ends_pass:
            raise Recorded
        if self.rotation is not None:
            key_states = self.rotation.rotate_keys(self.layer, key_states)
        return super().update(key_states, value_states)


class FixedForward(Protocol):
    """A faster way to read a few tokens behind a cache that lies in its buffers."""

    def run(self, cache: PlacedCache, token_ids: Sequence[int]) -> Tensor | None:
        """Read the tokens; logits [vocabulary] of the last one, or None (and nothing done) if it cannot."""
        ...


class PlacedCache(Cache):
    """A transformers cache of `PlacedLayer`s with room for `capacity` tokens.

    Attributes:
        block: all buffers in one tensor [layers, 2, kv_heads, capacity, head_dim], where they were lent and have not
            been outgrown.
        forward: what reads faster in the lent buffers than the model called in the ordinary way.
        intervention: how whatever is computed behind these states has to look at them; None for as usual.
    """

    def __init__(
        self, layers: int, capacity: int = 0, *, block: Tensor | None = None, forward: FixedForward | None = None
    ) -> None:
        self.placed = [PlacedLayer(capacity) for _ in range(layers)]
        self._coming: list[tuple[Iterator[int], int]] = []
        self._block = block
        self.forward = forward
        self.intervention: AttentionIntervention | None = None
        if block is not None:
            sides = block[:, :1].unbind(0), block[:, 1:].unbind(0)
            for layer, keys, values in zip(self.placed, *sides, strict=True):
                layer.lend(keys, values)
        super().__init__(layers=list(self.placed))

    @property
    def block(self) -> Tensor | None:
        """See the class; None once a layer has outgrown it."""
        block = self._block
        if block is not None and any(layer.capacity != block.shape[-2] for layer in self.placed):
            self._block = None
        return self._block

    @property
    def length(self) -> int:
        """Tokens present."""
        return self.placed[0].length

    @property
    def skipped(self) -> int:
        """Tokens left out."""
        return self.placed[0].skipped

    def expect(self, coming: Iterator[int]) -> None:
        """Take in states while the first layers already compute, layer by layer as they are looked at.

        Args:
            coming: brings some more layers' states to their places at each step, and gives how many layers have them.
        """
        self._coming.append((coming, 0))
        this = weakref.ref(self)  # an answer that is given up must free its buffers at once
        for index, layer in enumerate(self.placed, start=1):
            layer.before = partial(_arrive, this, index)

    def arrive(self, layers: int | None = None) -> None:
        """Have the states of the first `layers` layers, all by default, before what the current stream does next."""
        if not self._coming:
            return
        wanted = len(self.placed) if layers is None else layers
        self._coming = [(coming, _bring(coming, done, wanted)) for coming, done in self._coming]
        if wanted == len(self.placed):
            self._coming = []
        for layer in self.placed[:wanted]:
            layer.before = None

    def room(self, first: int, layers: int, start: int, tokens: int) -> Tensor | None:
        """The places ``start ...`` in the layers ``first ...``, [layers, 2, kv_heads, tokens, head_dim].

        `advance` makes them count. None where they do not lie in the block.
        """
        block = self.block
        if block is None or start + tokens > block.shape[-2]:
            return None
        return block[first : first + layers, :, :, start : start + tokens]

    def append(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Write states [layers, kv_heads, tokens, head_dim] behind those that the layers ``first ...`` have.

        Args:
            keys: as they are to be attended.
        """
        for layer, key, value in zip(self.placed[first : first + len(keys)], keys, values, strict=True):
            layer.append(key[None], value[None])

    def copy(self, start: int, end: int) -> tuple[LayerStates, ...]:
        """Keys and values of the places ``start ... end - 1`` in every layer, [kv_heads, tokens, head_dim] each, in
        memory of their own; out of a block in one, so that they can be put back at once.
        """
        self.arrive()
        room = self.room(0, len(self.placed), start, end - start)
        if room is None:
            views = [layer.view() for layer in self.placed]
            return tuple((keys[0, :, start:end].clone(), values[0, :, start:end].clone()) for keys, values in views)
        return tuple((keys, values) for keys, values in room.clone(memory_format=torch.contiguous_format))

    def advance(self, end: int) -> None:
        """From now on the cache holds `end` tokens."""
        for layer in self.placed:
            layer.length = end

    def nbytes(self) -> int:
        """Bytes that the buffers hold."""
        tensors = (t for layer in self.placed for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor))
        return sum(t.numel() * t.element_size() for t in tensors)


def _arrive(cache: weakref.ref[PlacedCache], layers: int) -> None:
    found = cache()
    if found is not None:
        found.arrive(layers)


def _bring(coming: Iterator[int], done: int, wanted: int) -> int:
    """Take steps until so many layers have their states."""
    while done < wanted:
        done = next(coming, -1)
        if done < 0:
            raise RuntimeError("a state has fewer layers than the model")
    return done


class RecordingCache(Cache):
    """A cache of `RecordingLayer`s: what a capture pass writes into.

    Args:
        states_only: end the pass (`Recorded`) as soon as all states are there.
    """

    def __init__(
        self, layers: int, rotation: DeferredRotation | None, capacity: int = 0, *, states_only: bool = False
    ) -> None:
        self.placed = [
            RecordingLayer(index, rotation, capacity, ends_pass=states_only and index == layers - 1)
            for index in range(layers)
        ]
        super().__init__(layers=list(self.placed))

    def recorded(self) -> list[tuple[Tensor, Tensor]]:
        """For each layer the unrotated keys and the values of all recorded tokens, [batch, kv_heads, tokens, dim].

        A layer that the pass has left out counts with zeros, in the shape of the last one.
        """
        like = self.placed[-1].raw
        none = [(torch.zeros_like(key), torch.zeros_like(value)) for key, value in like]
        rows = [layer.raw or none for layer in self.placed]
        return [(torch.cat([k for k, _ in raw], dim=-2), torch.cat([v for _, v in raw], dim=-2)) for raw in rows]
