"""Batches stay within their budgets; what does not fit the device is done in smaller parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from nnm_core.model.batching import in_halves, padded_batches


def test_padded_batches_keep_within_tokens_and_rows() -> None:
    lengths = [5, 1, 9, 2, 2, 7, 1]
    batches = list(padded_batches(lengths, 10, most=3))
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert all(len(batch) <= 3 for batch in batches)
    assert all(len(batch) * max(lengths[i] for i in batch) <= 10 for batch in batches)
    assert len(next(padded_batches([1] * 7, 10))) == 7


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert list(padded_batches([30, 1], 10)) == [[1], [0]]


class Device:
    """Room for so many items at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.fitted: list[int] = []

    def doubled(self, items: Sequence[int]) -> list[int]:
        if len(items) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.fitted.append(len(items))
        return [2 * item for item in items]


def test_what_does_not_fit_is_done_in_halves_and_in_order() -> None:
    device = Device(room=3)
    assert in_halves(device.doubled, list(range(10))) == [2 * item for item in range(10)]
    assert device.fitted == [2, 3, 2, 3]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(Device(room=0).doubled, [1, 2])


def test_other_errors_are_not_tried_again() -> None:
    calls: list[int] = []

    def broken(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        in_halves(broken, [1, 2])
    assert calls == [2]
