"""Rows of tokens put together into padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

# On a CPU the buffers of a larger pass are given back to the system and faulted in again by the next one, which costs
# up to a third of its time; smaller passes make the matrix products slower.
_TOKENS_PER_PASS = {"cpu": 512, "cuda": 65536, "mps": 16384}


def tokens_per_pass(device: torch.device) -> int:
    """Padded tokens of one forward pass at which many short rows are read fastest."""
    return _TOKENS_PER_PASS.get(device.type, _TOKENS_PER_PASS["cpu"])


def padded_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows grouped so that rows x longest row stays within `budget` tokens (at least one row a batch).

    Rows of similar length go together, shortest first, so that little is padded.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
