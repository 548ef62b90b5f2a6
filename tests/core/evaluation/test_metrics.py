from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("ranx")

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.metrics import per_query
from nnm_core.evaluation.statistics import bootstrap, paired_bootstrap


@pytest.mark.slow  # numba compiles ranx on the first call
def test_metrics_are_the_known_ones_in_the_order_of_the_judgements() -> None:
    qrels = {"z": {"a": 1, "b": 1}, "a": {"c": 1}, "lost": {"d": 1}}
    run = {"z": {"a": 3.0, "x": 2.0, "b": 1.0}, "a": {"x": 9.0, "c": 1.0}}
    got = per_query(qrels, run)
    ideal = 1 + 1 / math.log2(3)
    np.testing.assert_allclose(got["ndcg@10"], [(1 + 0.5) / ideal, 1 / math.log2(3), 0], atol=1e-9)
    np.testing.assert_allclose(got["recall@100"], [1, 1, 0])
    np.testing.assert_allclose(got["mrr@10"], [1, 0.5, 0])


@pytest.mark.slow
def test_equal_scores_are_ranked_by_id_whatever_the_order_they_came_in() -> None:
    qrels = {"q": {"b": 1}}
    for order in (["a", "b"], ["b", "a"]):
        assert per_query(qrels, {"q": dict.fromkeys(order, 1.0)}, ["mrr@10"])["mrr@10"].tolist() == [0.5]


def test_the_bootstrap_interval_covers_a_known_mean_and_narrows() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    wide, narrow = bootstrap(values[:40]), bootstrap(values)
    assert narrow.low < 0.3 < narrow.high
    assert narrow.high - narrow.low < wide.high - wide.low
    assert abs((narrow.high - narrow.low) / 2 - 1.96 * values.std() / 20) < 0.01
    assert bootstrap(values) == narrow


def test_pairing_sees_a_small_difference_that_the_spread_hides() -> None:
    base = np.random.default_rng(2).random(200)
    better = paired_bootstrap(base + 0.01 + np.random.default_rng(3).normal(0, 0.02, 200), base)
    assert better.low > 0
    assert better.p < 0.01
    same = paired_bootstrap(base, base)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_bootstrap_refuses_nothing_and_unequal_lengths() -> None:
    with pytest.raises(InvalidInputError):
        bootstrap([])
    with pytest.raises(InvalidInputError, match="equal lengths"):
        paired_bootstrap([1.0], [1.0, 2.0])
