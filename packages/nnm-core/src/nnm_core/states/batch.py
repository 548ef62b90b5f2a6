"""Several prompts of different lengths in one cache: rows are padded on the right, each knows how far it is filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from nnm_core.states.cache import PlacedCache


class BatchLayer(DynamicLayer):
    """Keys and values [rows, kv_heads, capacity, head_dim]; each pass writes one token a row."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self._places = places

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new token [rows, kv_heads, 1, head_dim] of each row behind its own tokens."""
        assert self.keys is not None and self.values is not None  # given by BatchCache
        places = self._places
        self.keys[places.rows, :, places.filled] = key_states[:, :, 0]
        self.values[places.rows, :, places.filled] = value_states[:, :, 0]
        return self.keys[:, :, : places.reach], self.values[:, :, : places.reach]

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return self._places.reach - 1


class Places:
    """How far each row is filled, for all layers."""

    def __init__(self, filled: Sequence[int], device: torch.device) -> None:
        self.rows = torch.arange(len(filled), device=device)
        self.filled = torch.tensor(list(filled), device=device)
        self.reach = max(filled) + 1

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of each row's new token, [rows, 1, 1, reach]: nothing behind it is seen."""
        places = torch.arange(self.reach, device=self.filled.device)
        unseen = places[None] > self.filled[:, None]
        return torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill_(
            unseen, torch.finfo(dtype).min
        )[:, None, None]


class BatchCache(Cache):
    """A cache whose rows are copies of caches that were filled one by one."""

    def __init__(self, layers: int, rows: int, capacity: int) -> None:
        self._lengths: list[int] = []
        self.places = Places([0], torch.device("cpu"))
        self._capacity = capacity
        self._rows = rows
        self.batched = [BatchLayer(self.places) for _ in range(layers)]
        super().__init__(layers=list(self.batched))

    def add(self, row: PlacedCache) -> None:
        """Copy a filled cache into the next row."""
        index = len(self._lengths)
        for layer, source in zip(self.batched, row.placed, strict=True):
            keys, values = source.view()
            if layer.keys is None or layer.values is None:
                layer.keys = keys.new_zeros((self._rows, keys.shape[1], self._capacity, keys.shape[3]))
                layer.values = values.new_zeros((self._rows, values.shape[1], self._capacity, values.shape[3]))
                layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.keys[index, :, : row.length].copy_(keys[0])
            layer.values[index, :, : row.length].copy_(values[0])
        self._lengths.append(row.length)
        self._settle(keys.device)

    def advance(self) -> None:
        """Each row has one token more."""
        self._lengths = [length + 1 for length in self._lengths]
        self._settle(self.places.filled.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        for layer in self.batched:
            assert layer.keys is not None and layer.values is not None  # rows were added
            chosen = torch.tensor(list(rows), device=layer.keys.device)
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]
        self._lengths = [self._lengths[row] for row in rows]
        self._settle(self.places.filled.device)

    def nbytes(self) -> int:
        """Bytes of the buffers."""
        tensors = (t for layer in self.batched for t in (layer.keys, layer.values) if t is not None)
        return sum(t.numel() * t.element_size() for t in tensors)

    def _settle(self, device: torch.device) -> None:
        self.places = Places(self._lengths, device)
        for layer in self.batched:
            layer._places = self.places
