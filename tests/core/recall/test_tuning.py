from __future__ import annotations

import math

import numpy as np
import pytest

from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.errors import InvalidInputError
from nnm_core.recall.exact import ExactSparse
from nnm_core.recall.rerank import Evidence
from nnm_core.recall.tuning import (
    FirstStageTrial,
    RerankTrial,
    best_heads,
    head_name,
    head_scores,
    tune_first_stage,
    tune_rerank,
)

TEXTS = ["red green blue", "red red red sky", "a green field under a blue sky", "nothing of it"]
NAMES = [f"d{i}" for i in range(8)]


def encoder() -> SparseEncoder:
    return SparseEncoder(None, SparseSettings(stemmer=None, stop_words=frozenset(), gram_weight=0))


def test_exact_scores_are_bm25_with_the_idf_of_the_index() -> None:
    made = encoder()
    scorer = ExactSparse([made.document(text) for text in TEXTS])
    got = scorer.scores(made.query("red sky unknown"))
    for text, score in zip(TEXTS, got, strict=True):
        document = dict(zip(made.document(text).indices.tolist(), made.document(text).values.tolist(), strict=True))
        expected = 0.0
        for word in ("red", "sky"):
            (key,) = made.query(word).indices.tolist()
            holding = sum(word in other.split() for other in TEXTS)
            expected += document.get(key, 0.0) * math.log(1 + (4 - holding + 0.5) / (holding + 0.5))
        assert score == pytest.approx(expected, rel=1e-6)


def test_a_document_outside_is_scored_as_one_inside() -> None:
    made = encoder()
    scorer = ExactSparse([made.document(text) for text in TEXTS])
    query = made.query("red blue zebra")
    for text, score in zip(TEXTS, scorer.scores(query), strict=True):
        assert scorer.score_of(query, made.document(text)) == pytest.approx(score, rel=1e-6)


def test_no_documents_and_no_words_score_nothing() -> None:
    made = encoder()
    assert ExactSparse([]).scores(made.query("red")).shape == (0,)
    assert ExactSparse([made.document("red")]).scores(made.query("")).tolist() == [0.0]


def first_stage(dense_helps: float, *, count: int = 60, seed: int = 0) -> list[FirstStageTrial]:
    """Sparse ranks the right document second in one of five cases; dense agrees with the right one to a degree."""
    generator = np.random.default_rng(seed)
    trials = []
    for _ in range(count):
        words = generator.uniform(0, 0.5, len(NAMES))
        words[0] = 0.6
        words[1] = generator.choice([0.5, 0.7], p=[0.8, 0.2])
        meaning = generator.uniform(0, 1, len(NAMES))
        meaning[0] += dense_helps
        trials.append(FirstStageTrial("d0", {"sparse": ranking(words), "dense": ranking(meaning)}))
    return trials


def ranking(scores: np.ndarray) -> list[tuple[str, float]]:
    return sorted(zip(NAMES, scores.tolist(), strict=True), key=lambda pair: -pair[1])


def test_a_useless_dense_vector_gets_no_say() -> None:
    choice = tune_first_stage(first_stage(0.0))
    assert choice.weights == {"sparse": 1.0, "dense": 0.0}
    assert choice.score == choice.baseline


def test_a_good_dense_vector_gets_a_say_and_the_score_rises() -> None:
    choice = tune_first_stage(first_stage(0.8))
    assert choice.weights["dense"] > 0
    assert choice.score > choice.baseline + 0.02
    assert choice.score <= max(score for _, score in choice.tried)


def rerank_trials(likelihood: float, head: float, *, count: int = 60) -> list[RerankTrial]:
    generator = np.random.default_rng(3)
    trials = []
    for _ in range(count):
        first = {name: float(score) for name, score in zip(NAMES, generator.uniform(0, 1, 8), strict=True)}
        first["d0"] += 0.4
        seen = {}
        for name in NAMES:
            right = name == "d0"
            heads = generator.normal(size=6).astype(np.float32)
            heads[4] += head * right
            seen[name] = Evidence(float(generator.normal() + likelihood * right), heads, np.zeros(0, np.float32))
        trials.append(RerankTrial("d0", first, seen))
    return trials


def test_the_head_that_looks_at_the_right_memory_is_found() -> None:
    scores = head_scores(rerank_trials(0.0, 3.0))
    assert best_heads(scores, 2)[0] == 4
    assert scores[4] > 0.8
    assert head_name(4, 3) == (1, 1)


def test_only_witnesses_that_help_get_a_say() -> None:
    heads = tune_rerank(rerank_trials(0.0, 3.0), [4])
    assert heads.weights["likelihood"] <= 0.1 < heads.weights["attention"]
    words = tune_rerank(rerank_trials(3.0, 0.0), [4])
    assert words.weights["attention"] <= 0.1 < words.weights["likelihood"]
    nobody = tune_rerank(rerank_trials(0.0, 0.0), [4])
    assert sum(nobody.weights.values()) <= 1.2
    assert "attention" not in tune_rerank(rerank_trials(3.0, 0.0), []).weights


def test_a_head_that_ties_with_all_others_is_no_good_head() -> None:
    blind = Evidence(0.0, np.zeros(2, np.float32), np.zeros(0, np.float32))
    trials = [RerankTrial("d0", dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, blind))]
    assert head_scores(trials).tolist() == [1 / 8, 1 / 8]


def test_nothing_to_tune_on_is_said() -> None:
    with pytest.raises(InvalidInputError, match="nothing to tune on"):
        tune_first_stage([])
    with pytest.raises(InvalidInputError, match="evidence of all heads"):
        head_scores([])
