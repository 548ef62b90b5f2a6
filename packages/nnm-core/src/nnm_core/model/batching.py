"""Rows of tokens put together into padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


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
