"""Weights, heads and depth from judged queries: what helps is found, and the score is that of the metric."""

from __future__ import annotations

import numpy as np
import pytest

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.judged_tuning import tune_on_judgements
from nnm_core.evaluation.metrics import per_query
from nnm_core.evaluation.retrieval import as_run, reranked
from nnm_core.recall.fusion import Ranking
from nnm_core.recall.rerank import Evidence

pytest.importorskip("ranx")

NAMES = [f"d{i:02}" for i in range(16)]
Seen = dict[str, dict[str, Evidence]]
NOTHING = np.zeros(0, np.float32)


def world(likelihood: float, head: float, *, heads: int = 5, count: int = 80) -> tuple[dict[str, Ranking], Seen, dict]:
    """Queries whose right document stands anywhere; likelihood and head 3 favour it by so many deviations."""
    generator = np.random.default_rng(1)
    first: dict[str, Ranking] = {}
    seen: Seen = {}
    qrels = {}
    for number in range(count):
        right = NAMES[int(generator.integers(0, 10))]
        first[f"q{number}"] = [(name, float(16 - place)) for place, name in enumerate(NAMES)]
        seen[f"q{number}"] = {}
        for name in NAMES[:12]:
            attention = generator.normal(size=heads).astype(np.float32)
            if heads:
                attention[3] += head * (name == right)
            gain = float(generator.normal() + likelihood * (name == right))
            seen[f"q{number}"][name] = Evidence(gain, attention, NOTHING)
        qrels[f"q{number}"] = {right: 1, "elsewhere": 1} if number % 7 == 0 else {right: 1}
    return first, seen, qrels


def test_what_helps_gets_a_say_and_what_does_not_gets_little() -> None:
    words = tune_on_judgements(*world(4.0, 0.0))
    assert words.weights["likelihood"] > words.weights["attention"]
    assert words.score > words.baseline + 0.1
    looks = tune_on_judgements(*world(0.0, 4.0))
    assert looks.heads[0] == 3
    assert looks.weights["attention"] > looks.weights["likelihood"]
    assert tune_on_judgements(*world(4.0, 0.0, heads=0)).heads == ()


@pytest.mark.parametrize("depths", [(5,), (12,), (99,)])
def test_scores_are_those_of_the_metric_on_the_re_ranked_lists(depths: tuple[int, ...]) -> None:
    first, seen, qrels = world(2.0, 2.0)
    choice = tune_on_judgements(first, seen, qrels, depths=depths)
    assert choice.depth == min(depths[0], 12)
    near = {
        query: {name: seen[query][name].of_heads(choice.heads) for name, _ in ranking[: choice.depth]}
        for query, ranking in first.items()
    }
    made = reranked(first, near, choice.weights)
    assert choice.score == pytest.approx(per_query(qrels, as_run(made))["ndcg@10"].mean(), abs=1e-9)
    assert choice.baseline == pytest.approx(per_query(qrels, as_run(first))["ndcg@10"].mean(), abs=1e-9)
    assert choice.score == max(score for _, _, score in choice.tried)


def test_without_evidence_there_is_nothing_to_choose() -> None:
    first, _, qrels = world(1.0, 1.0)
    with pytest.raises(InvalidInputError):
        tune_on_judgements(first, {}, qrels)
