"""How sure a measured figure is: bootstrap intervals over queries, paired where two systems saw the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnm_core.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % (or other) bootstrap interval.

    Attributes:
        mean: of the values.
        low: lower end.
        high: upper end.
        p: two-sided bootstrap p-value of "the mean is 0"; meaningful for differences.
        count: number of independent items (queries), never of repetitions.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int


def bootstrap(values: ArrayLike, *, draws: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of one value a query (Efron & Tibshirani 1993).

    Raises:
        InvalidInputError: no values, or something that is no list of numbers.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data):
        raise InvalidInputError("A bootstrap needs a list of at least one value.")
    means = _means(data, draws, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    below, above = float(np.mean(means <= 0)), float(np.mean(means >= 0))
    p = min(1.0, max(2 * min(below, above), 1 / draws))
    return Interval(float(data.mean()), float(low), float(high), p, len(data))


def paired_bootstrap(
    ours: ArrayLike, theirs: ArrayLike, *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Bootstrap of the mean difference ours - theirs over the same queries.

    Raises:
        InvalidInputError: not the same number of values.
    """
    left, right = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if left.shape != right.shape:
        raise InvalidInputError(f"A paired bootstrap needs equal lengths, not {left.shape} and {right.shape}.")
    return bootstrap(left - right, draws=draws, level=level, seed=seed)


def _means(data: NDArray[np.float64], draws: int, seed: int, block: int = 1000) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    parts: Sequence[NDArray[np.float64]] = [
        data[generator.integers(0, len(data), (min(block, draws - done), len(data)))].mean(axis=1)
        for done in range(0, draws, block)
    ]
    return np.concatenate(parts)
