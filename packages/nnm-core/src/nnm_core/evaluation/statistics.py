"""How sure a measured figure is: bootstrap intervals over queries, paired where two systems saw the same ones.

Values belong to unique items. Greedy answers of the same item under several seeds are one item, not several: counting
them apart makes any difference significant.
"""

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


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact test of two systems that were right or wrong on the same items.

    Attributes:
        ours: items that only the first got right.
        theirs: items that only the second got right.
        p: two-sided probability of such a split, or a more uneven one, if both were equally good.
        count: number of items.
    """

    ours: int
    theirs: int
    p: float
    count: int


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> McNemar:
    """Exact McNemar test (McNemar 1947, binomial form): of the items on which the two differ, each side gets half.

    Args:
        ours: per unique item whether the first system was right; anything but 0 counts as right.
        theirs: the same for the second, in the same order.

    Raises:
        InvalidInputError: not the same number of items.
    """
    left, right = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if left.ndim != 1 or left.shape != right.shape:
        raise InvalidInputError(f"McNemar's test needs two lists of one length, not {left.shape} and {right.shape}.")
    first, second = int(np.sum(left & ~right)), int(np.sum(right & ~left))
    return McNemar(first, second, mcnemar_p(first, second), len(left))


def mcnemar_p(ours: int, theirs: int) -> float:
    """The p-value of `mcnemar` from the two counts of items that only one side got right."""
    from scipy.stats import binomtest

    return float(binomtest(ours, ours + theirs, 0.5).pvalue) if ours + theirs else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """p-values of several tests corrected together (Holm 1979): p_(i) * (m - i + 1), made non-decreasing, at most 1."""
    corrected = [1.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, ps[place] * (len(ps) - rank)))
        corrected[place] = largest
    return corrected


def _means(data: NDArray[np.float64], draws: int, seed: int, block: int = 1000) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    parts: Sequence[NDArray[np.float64]] = [
        data[generator.integers(0, len(data), (min(block, draws - done), len(data)))].mean(axis=1)
        for done in range(0, draws, block)
    ]
    return np.concatenate(parts)
