"""Reading a query over stored states against reading the whole text anew, on many families."""

from __future__ import annotations

import pytest
import torch
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.reading import read_logits

from nnm_core.model.batching import padded_batches
from nnm_core.recall.state_pass import Nothing, read_over
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.state import PlacedState

LEFT = random_ids(5, seed=1)
MEMORIES = [random_ids(n, seed=10 + n) for n in (9, 30, 17)]
CUE, QUERY = random_ids(3, seed=2), random_ids(6, seed=3)


def placed(family: str) -> tuple[PlacedState, list[PlacedState]]:
    model = loaded(family)
    left = place(model, capture(model, [LEFT])[0], 0)
    return left, [place(model, state, len(LEFT)) for state in capture(model, MEMORIES, left)]


def reread(family: str, row: list[int]) -> torch.Tensor:
    logits = read_logits(loaded(family), [*row, *CUE, *QUERY])[-len(QUERY) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(QUERY)[:, None])[:, 0]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_likelihoods_are_those_of_reading_the_text(family: str) -> None:
    left, memories = placed(family)
    got = read_over(loaded(family), left, memories, cue=CUE, query=QUERY)
    expected = torch.stack([reread(family, [*LEFT, *memory]) for memory in MEMORIES])
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_without_a_left_context() -> None:
    model = loaded("qwen3")
    memories = [place(model, state, 0) for state in capture(model, MEMORIES)]
    got = read_over(model, Nothing(memories[0]), memories, cue=CUE, query=QUERY)
    torch.testing.assert_close(got, torch.stack([reread("qwen3", m) for m in MEMORIES]), atol=2e-4, rtol=1e-4)
    assert EMPTY.length == 0


def test_the_null_reading_is_the_left_context_alone() -> None:
    left, memories = placed("qwen3")
    got = read_over(loaded("qwen3"), left, [Nothing(memories[0])], cue=CUE, query=QUERY)
    torch.testing.assert_close(got[0], reread("qwen3", LEFT), atol=2e-4, rtol=1e-4)


def test_groups_hold_the_budget_and_every_index() -> None:
    made = list(padded_batches([5, 90, 40, 40, 7, 200], 100))
    assert sorted(index for group in made for index in group) == list(range(6))
    lengths = [5, 90, 40, 40, 7, 200]
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 100 for group in made)
