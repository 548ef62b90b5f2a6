"""Rows of tokens put together into padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")

# On a CPU the buffers of a larger pass are given back to the system and faulted in again by the next one, which costs
# up to a third of its time; smaller passes make the matrix products slower.
_TOKENS_PER_PASS = {"cpu": 512, "cuda": 65536, "mps": 16384}


def tokens_per_pass(device: torch.device) -> int:
    """Padded tokens of one forward pass at which many short rows are read fastest."""
    return _TOKENS_PER_PASS.get(device.type, _TOKENS_PER_PASS["cpu"])


def padded_batches(lengths: Sequence[int], budget: int, most: int | None = None) -> Iterator[list[int]]:
    """Indices of rows grouped so that rows x longest row stays within `budget` tokens (at least one row a batch).

    Rows of similar length go together, shortest first, so that little is padded.

    Args:
        lengths: tokens of each row.
        budget: padded tokens of a batch.
        most: rows of a batch, for passes that need memory by the row and not only by the token.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and ((len(batch) + 1) * lengths[index] > budget or len(batch) == most):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def in_halves(work: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item]) -> list[Made]:
    """`work(items)`, in two halves if the device has no memory for all at once, these again in halves and so on.

    What a device has left is not known beforehand: other programs use it too.

    Args:
        work: gives one result an item, in order.
        items: at least one.

    Raises:
        torch.OutOfMemoryError: not even one item fits.
    """
    try:
        return list(work(items))
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    # Out here the failed pass's tensors are no longer held by the exception.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    return in_halves(work, items[:half]) + in_halves(work, items[half:])
