"""What a collection's search does, chosen on a sample of its own documents. Called when the whitening is refitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnm_core.embedding.kv_embedding import EncoderModel, KVEmbedder
from nnm_core.embedding.pairs import self_labels
from nnm_core.embedding.tokens import SparseEncoder
from nnm_core.embedding.whitening import Whitening
from nnm_core.recall.exact import DenseSide, SparseSide
from nnm_core.recall.rerank import RerankSettings, StateReranker
from nnm_core.recall.search import SearchSettings
from nnm_core.recall.state_pass import StateView
from nnm_core.recall.tuning import (
    Choice,
    FirstStageTrial,
    RerankTrial,
    best_heads,
    head_name,
    head_scores,
    tune_first_stage,
    tune_rerank,
)

ENOUGH = 16
"""With fewer own sentences than this nothing is chosen: the defaults stay."""


def choose_search(
    texts: Sequence[str],
    raw: NDArray[np.float32],
    *,
    embedder: KVEmbedder,
    whitening: Whitening,
    sparse: SparseEncoder,
    count: int = 64,
    base: SearchSettings | None = None,
) -> tuple[SearchSettings, Choice | None]:
    """The dense ranking's weight, chosen on `count` own sentences; `base` where there are too few.

    Costs the embedding of `count` documents (without their sentence) and of as many sentences.

    Args:
        texts: a sample of the collection's documents, up to some thousands.
        raw: their raw dense vectors, [texts, dim].
        embedder: of the collection.
        whitening: of the collection.
        sparse: of the collection.
        count: own sentences.
        base: everything but the weights.
    """
    base = base or SearchSettings()
    labels = self_labels(texts, count)
    if len(labels) < ENOUGH:
        return base, None
    documents = {str(index): text for index, text in enumerate(texts)}
    words, names = SparseSide.of(documents, sparse), list(documents)
    meaning = DenseSide(names, embedder, whitening, whitening.transform(raw)).trials(labels, base.prefetch)
    trials = [
        FirstStageTrial(names[label.document], {"sparse": words.trial(label, base.prefetch), "dense": dense})
        for label, dense in zip(labels, meaning, strict=True)
    ]
    choice = tune_first_stage(trials, method=base.method)
    return replace(base, weights={**base.weights, **choice.weights}), choice


def choose_rerank(
    texts: Sequence[str],
    *,
    model: EncoderModel,
    left: StateView,
    states_of: Callable[[Sequence[int]], Sequence[StateView]],
    read: Callable[[str], StateView],
    sparse: SparseEncoder,
    count: int = 64,
    candidates: int = 8,
    heads: int = 8,
    base: RerankSettings | None = None,
) -> tuple[RerankSettings, Choice | None]:
    """Retrieval heads and witness weights, chosen on `count` own sentences; `base` where there are too few.

    Costs the reading of `count` documents without their sentence; all other states are stored ones.

    Args:
        texts: a sample of the collection's documents.
        model: that made the states.
        left: state of the canonical left context.
        states_of: placed states of texts, by their indices.
        read: the placed state of a text that is not stored.
        sparse: of the collection.
        count: own sentences.
        candidates: documents that each of them is tried on.
        heads: how many heads to keep.
        base: everything but heads and weights.
    """
    base = base or RerankSettings()
    labels = self_labels(texts, count)
    if len(labels) < ENOUGH:
        return base, None
    side = SparseSide.of({str(index): text for index, text in enumerate(texts)}, sparse)
    reranker = StateReranker(model, left, base, all_heads=True)
    trials: list[RerankTrial] = []
    for label in labels:
        gold = str(label.document)
        first = dict(side.trial(label, candidates))
        others = [name for name in first if name != gold]
        states = dict(zip(others, states_of([int(name) for name in others]), strict=True))
        trials.append(RerankTrial(gold, first, reranker.evidence(label.query, {**states, gold: read(label.rest)})))
    columns: list[int] = []
    if model.intervenes:
        columns = sorted(best_heads(head_scores(trials), heads))
    choice = tune_rerank(trials, columns)
    per_layer = int(model.hf.config.get_text_config().num_attention_heads)
    return replace(base, heads=tuple(head_name(c, per_layer) for c in columns), weights=choice.weights), choice
