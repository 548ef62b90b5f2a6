"""Search is not below a good BM25 on a pool like the original project's 50 x 250, cut from the demo's passages.

24 questions on 256 sentences, through the whole engine: with so many memories it chooses the dense vectors' weight too,
and a random model's vectors must not harm. The real 50 x 250 of SciFact takes minutes with nnm-mini, so it is no test:
`nnm eval retrieval FOLDER --subset 50x250`.
"""

from __future__ import annotations

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.demo.dataset import passages, questions
from nnm_core.embedding.pairs import sentences
from nnm_core.evaluation import baselines
from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.evaluation.metrics import per_query

pytest.importorskip("bm25s")
pytest.importorskip("ranx")


LONGEST = 365  # bytes: what the tiny reader can keep in one memory


def pool() -> RetrievalSet:
    """Sentences of the demo's passages; those of a question's passage that hold an answer are relevant."""
    parts = {f"{p.id}#{i}": text for p in passages() for i, text in enumerate(sentences(p.text))}
    documents = {name: text for name, text in parts.items() if len(text.encode()) < LONGEST}
    asked = {question.id: question for question in questions()}
    qrels = {
        key: {
            name: 1
            for name, text in documents.items()
            if name.split("#")[0] == question.passage and contains_answer(text, question.answers)
        }
        for key, question in asked.items()
    }
    return RetrievalSet("demo", documents, {key: question.question for key, question in asked.items()}, qrels)


def test_search_is_not_below_bm25_on_a_small_pool() -> None:
    data = pool()
    assert len(data.documents) >= 256  # from here on the engine chooses the dense weight itself
    assert all(data.qrels.values())
    with NNM.open(tiny_reader(), system=None) as nnm:
        nnm.add(list(data.documents.values()), ids=list(data.documents))
        found = {
            key: {hit.memory.id: hit.score for hit in nnm.search(text, k=10)} for key, text in data.queries.items()
        }
    bm25 = {key: dict(ranking) for key, ranking in baselines.bm25(data, 10).items()}
    ours, theirs = (per_query(data.qrels, run)["ndcg@10"] for run in (found, bm25))
    assert theirs.mean() > 0.75  # a BM25 that works
    assert ours.mean() >= theirs.mean()
