"""Ranking metrics, computed by `ranx` (extra ``bench``); nothing here is an own implementation of a metric."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError

METRICS = ("ndcg@10", "recall@100", "mrr@10")
Run = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""


def per_query(
    qrels: Mapping[str, Mapping[str, int]], run: Run, metrics: Sequence[str] = METRICS
) -> dict[str, NDArray[np.float64]]:
    """Each metric for each query, in the order of `qrels`; a query that the run left unanswered counts 0.

    Args:
        qrels: query id -> document id -> grade.
        run: query id -> document id -> score; ties are broken by document id.
        metrics: names as `ranx` knows them.

    Raises:
        InvalidInputError: `ranx` is not installed.
    """
    try:
        import ranx
    except ImportError as error:
        raise InvalidInputError("Metrics need ranx.", hint='pip install "nnm-core[bench]"') from error
    order = sorted(qrels)
    # ranx sorts by score alone; tiny steps in the order of (score, id) make ties independent of insertion order.
    ranked = {query: _strict(run.get(query, {})) for query in order}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba says how it casts integers while it compiles ranx
        found: Any = ranx.evaluate(
            ranx.Qrels({query: dict(qrels[query]) for query in order}),
            ranx.Run(ranked),
            list(metrics),
            return_mean=False,
        )
    by_metric = found if isinstance(found, dict) else {metrics[0]: found}
    places = [order.index(query) for query in qrels]
    return {name: np.asarray(values, dtype=np.float64)[places] for name, values in by_metric.items()}


def _strict(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores replaced by their rank from below, ties decided by id; a document that never occurs when empty."""
    order = sorted(scores, key=lambda key: (-scores[key], key))
    return {key: float(len(order) - place) for place, key in enumerate(order)} or {"": 0.0}
