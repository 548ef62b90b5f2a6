"""Choosing among means of weights and shifts of declining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from average import mean
from calibrate import Case, Look, shifted
from choose import best_shift, score


def looks(margins: list[float], said: list[str]) -> list[Look]:
    """One unit state for all, so that a shift lowers every margin by exactly itself."""
    return [(torch.tensor([1.0, 0.0]), margin, text) for margin, text in zip(margins, said, strict=True)]


def test_a_mean_is_the_weighted_sum_of_its_parts() -> None:
    weights = {"final": {"a": np.array([1.0, 2.0], np.float32)}, "shipped": {"a": np.array([3.0, 6.0], np.float32)}}
    assert mean(weights, {"final": 0.75, "shipped": 0.25})["a"].tolist() == [1.5, 3.0]


def test_the_smallest_shift_that_loses_little_scores_best() -> None:
    """Right answers are declined by a margin of 1; the unanswerable by 3: a shift between the two is right for both."""
    cases: list[Case] = [("p", "Oslo"), ("q", "Rome"), ("r", ""), ("s", "")]
    sets = [(looks([1.0, 1.0, 3.0, 3.0], ["Oslo", "Rome", "x", "y"]), cases)]
    found = best_shift(sets, 0.1)
    assert found["allowed"] and 1.0 <= found["shift"] < 3.0
    assert found["score"] == pytest.approx(100.0) and score(found["tables"]) == pytest.approx(100.0)


def test_without_an_allowed_shift_the_largest_is_taken_and_said_so() -> None:
    sets = [(looks([50.0, 50.0], ["Oslo", "x"]), [("p", "Oslo"), ("r", "")])]
    found = best_shift(sets, 0.1)
    assert not found["allowed"] and found["shift"] == 8.0


def test_a_shift_lowers_the_logit_of_declining_by_itself() -> None:
    weights = {"model.embed_tokens.weight": np.eye(2, dtype=np.float32)}
    changed = shifted(weights, looks([0.0], ["Oslo"]), [("p", "Oslo")], 2.0, 0)["model.embed_tokens.weight"]
    state = np.array([1.0, 0.0], np.float32)
    assert changed[0] @ state == pytest.approx(1.0 - 2.0) and changed[1].tolist() == [0.0, 1.0]
    assert weights["model.embed_tokens.weight"][0, 0] == 1.0
