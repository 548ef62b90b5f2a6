from __future__ import annotations

import numpy as np
import pytest
from tests.core.families import loaded

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.pairs import SelfLabel
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.embedding.token_vectors import (
    TokenEncoder,
    TokenScale,
    TokenSettings,
    choose_token_layer,
    max_sim,
    pooled,
)
from nnm_core.errors import InvalidInputError

TEXTS = ["Bins go out on Monday.", "The bus, at noon!", "A cat sleeps on the wall; it wakes at dawn."]


def test_vectors_are_the_states_of_the_texts_own_words() -> None:
    model = loaded("qwen3")
    (rows,) = TokenEncoder(model, TokenSettings(layer=1)).raw(["ab, c!"])
    embedder = KVEmbedder(model, EmbeddingSettings(route="off"))
    (window,) = embedder.prompt.windows(["ab, c!"], "context", window=embedder.window)
    states = embedder.hidden_states([window])[2][0].detach().numpy()
    kept = [i for i in range(window.start, window.stop) if model.tokenizer.decode([window.ids[i]]).strip(" ,!")]
    assert 0 < len(kept) < window.stop - window.start
    np.testing.assert_allclose(rows, states[kept], atol=1e-6)


def test_vectors_do_not_depend_on_the_batch() -> None:
    encoder = TokenEncoder(loaded("qwen3"))
    together = encoder.raw(TEXTS)
    for text, rows in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.raw([text])[0], rows, atol=1e-5)


def test_documents_are_pooled_to_a_bound_and_queries_are_not() -> None:
    encoder = TokenEncoder(loaded("qwen3"), TokenSettings(most=5))
    encoder = encoder.with_scale(TokenScale.fit(encoder.raw(TEXTS)))
    documents, queries = encoder.encode(TEXTS), encoder.encode(TEXTS, "query")
    assert [len(rows) for rows in documents] == [5, 5, 5]
    assert all(len(rows) > 5 for rows in queries)
    for rows in (*documents, *queries):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_pooling_averages_neighbours() -> None:
    rows = np.eye(4, dtype=np.float32)
    half = np.float32(2**-0.5)
    np.testing.assert_allclose(pooled(rows, 2), [[half, half, 0, 0], [0, 0, half, half]])
    assert pooled(rows, 4) is rows


def test_a_text_without_words_still_has_a_vector() -> None:
    assert len(TokenEncoder(loaded("qwen3")).raw(["?!"])[0]) >= 1
    assert len(TokenEncoder(loaded("qwen3")).raw([""])[0]) == 1


def test_max_sim_is_the_sum_of_the_best() -> None:
    query = np.array([[1, 0], [0, 1]], np.float32)
    document = np.array([[0.6, 0.8], [1, 0]], np.float32)
    assert max_sim(query, document) == pytest.approx(1.8)


def test_the_scale_is_of_mean_0_and_deviation_1_and_survives_arrays() -> None:
    rows = np.random.default_rng(0).normal(3, [1, 5, 9], (50, 3)).astype(np.float32)
    scale = TokenScale.fit([rows[:20], rows[20:]])
    np.testing.assert_allclose(scale.mean, rows.mean(0), rtol=1e-5)
    again = TokenScale.from_arrays(scale.to_arrays())
    np.testing.assert_array_equal(again.apply(rows), scale.apply(rows))
    assert again.tokens == 50
    with pytest.raises(InvalidInputError, match="two tokens"):
        TokenScale.fit([])


def test_the_layer_is_chosen_by_own_sentences() -> None:
    labels = [SelfLabel(i, text[:9], text) for i, text in enumerate(TEXTS)]
    layer, tried = choose_token_layer(TokenEncoder(loaded("qwen3")), labels)
    assert set(tried) == {0, 1, 2, 3}
    assert tried[layer] == max(tried.values())
    with pytest.raises(InvalidInputError, match="choose"):
        choose_token_layer(TokenEncoder(loaded("qwen3")), [])


def test_settings_are_checked() -> None:
    assert TokenSettings(**TokenSettings(3, 9).to_dict()) == TokenSettings(3, 9)
    with pytest.raises(InvalidInputError, match="at least one"):
        TokenSettings(most=0)
