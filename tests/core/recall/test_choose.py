from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tests.core.families import loaded

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.recall.choose import choose_rerank, choose_search
from nnm_core.recall.rerank import RerankSettings
from nnm_core.recall.search import SearchSettings
from nnm_core.states.capture import capture, place
from nnm_core.states.state import PlacedState

TEXTS = [
    f"The {animal} lives near the {place}. The {animal} eats {food} in the morning. It sleeps high on a tree there."
    for animal in ("owl", "fox", "cat", "bat")
    for place in ("river", "mill")
    for food in ("mice", "berries", "fish")
]
SPARSE = SparseEncoder(None, SparseSettings(gram_weight=0))


def test_a_random_models_vectors_get_no_more_say_than_they_earn() -> None:
    embedder = KVEmbedder(loaded("qwen3"))
    raw = embedder.encode(TEXTS)
    statistics = SufficientStatistics(embedder.dim)
    statistics.add(raw)
    settings, choice = choose_search(
        TEXTS, raw, embedder=embedder, whitening=Whitening.fit(statistics), sparse=SPARSE, count=20
    )
    assert choice is not None
    assert choice.trials == 20
    assert settings.weights == choice.weights
    assert choice.score >= choice.baseline
    assert settings.weights["sparse"] == 1.0


def test_few_documents_keep_the_defaults() -> None:
    embedder = KVEmbedder(loaded("qwen3"))
    raw = embedder.encode(TEXTS[:3])
    whitening = Whitening.identity(embedder.dim)
    found = choose_search(TEXTS[:3], raw, embedder=embedder, whitening=whitening, sparse=SPARSE)
    assert found == (SearchSettings(), None)


def test_reranking_is_chosen_from_stored_states_and_only_the_changed_text_is_read() -> None:
    model = loaded("qwen3")
    left = place(model, capture(model, [[5, 6, 7]])[0], 0)
    read_texts: list[str] = []

    def read(text: str) -> PlacedState:
        read_texts.append(text)
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return place(model, capture(model, [ids], left)[0], left.length)

    stored = [read(text) for text in TEXTS]
    read_texts.clear()

    def states_of(indices: Sequence[int]) -> list[PlacedState]:
        return [stored[index] for index in indices]

    settings, choice = choose_rerank(
        TEXTS, model=model, left=left, states_of=states_of, read=read, sparse=SPARSE, count=16, candidates=4, heads=3
    )
    assert choice is not None
    assert len(settings.heads) == 3
    assert all(0 <= layer < 4 and 0 <= head < 4 for layer, head in settings.heads)
    assert len(read_texts) == choice.trials == 16
    assert not set(read_texts) & set(TEXTS)
    assert np.isfinite(choice.score)
    few = choose_rerank(TEXTS[:2], model=model, left=left, states_of=states_of, read=read, sparse=SPARSE)
    assert few == (RerankSettings(), None)
