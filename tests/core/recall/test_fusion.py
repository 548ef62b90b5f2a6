from __future__ import annotations

import pytest

from nnm_core.errors import InvalidInputError
from nnm_core.recall.fusion import fuse, relative_scores

RANKINGS = {"dense": [("a", 0.9), ("b", 0.5), ("c", 0.1)], "sparse": [("c", 30.0), ("d", 10.0)]}


def test_relative_scores_move_each_ranking_to_the_unit_interval() -> None:
    hits = fuse(RANKINGS, {"dense": 0.5, "sparse": 1.0}, method="rsf")
    assert {hit.id: pytest.approx(hit.score) for hit in hits} == {"a": 0.5, "b": 0.25, "c": 1.0, "d": 0.0}
    assert [hit.id for hit in hits] == ["c", "a", "b", "d"]


def test_reciprocal_ranks_are_weighted_and_summed() -> None:
    hits = {hit.id: hit.score for hit in fuse(RANKINGS, {"dense": 1.0, "sparse": 2.0}, method="rrf", rrf_k=60)}
    assert hits["c"] == pytest.approx(61 / 63 + 2 * 61 / 61)
    assert hits["a"] == pytest.approx(61 / 61)
    assert hits["d"] == pytest.approx(2 * 61 / 62)


def test_parts_explain_every_score() -> None:
    hits = {hit.id: hit.parts for hit in fuse(RANKINGS, {"dense": 1.0, "sparse": 1.0})}
    assert hits["c"] == {"dense": 0.1, "dense_rank": 3, "sparse": 30.0, "sparse_rank": 1}
    assert hits["a"] == {"dense": 0.9, "dense_rank": 1}


@pytest.mark.parametrize("method", ["rrf", "rsf"])
def test_a_ranking_without_weight_changes_neither_order_nor_members(method: str) -> None:
    hits = fuse(RANKINGS, {"sparse": 1.0, "dense": 0.0}, method=method)  # type: ignore[arg-type]
    assert [hit.id for hit in hits] == ["c", "d"]
    assert hits[0].parts["dense_rank"] == 3


def test_ties_are_broken_by_id_and_limits_hold() -> None:
    hits = fuse({"x": [("b", 1.0), ("a", 1.0), ("c", 1.0)]}, {"x": 1.0}, method="rsf", limit=2)
    assert [hit.id for hit in hits] == ["a", "b"]
    assert fuse({"x": []}, {"x": 1.0}) == []


def test_equal_scores_are_all_best() -> None:
    assert relative_scores([2.0, 2.0]) == [1.0, 1.0]
    assert relative_scores([]) == []


def test_bad_weights_and_methods_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="negative"):
        fuse(RANKINGS, {"dense": -1.0})
    with pytest.raises(InvalidInputError, match="fusion"):
        fuse(RANKINGS, {"dense": 1.0}, method="sum")  # type: ignore[arg-type]
