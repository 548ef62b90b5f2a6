from __future__ import annotations

import pytest
import torch
from tests.core.families import loaded

from nnm_core.embedding.expansion import Expander, weighted
from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.embedding.tokens import SparseEncoder


class Words:
    """A stand-in for the vocabulary: tokens 300.. are words."""

    names = ("noon", "monday", "the", "bus")


def expander(monkeypatch: pytest.MonkeyPatch) -> Expander:
    made = Expander(loaded("qwen3"), SparseEncoder(None))
    monkeypatch.setattr(Expander, "_words", dict(zip(range(40, 44), Words.names, strict=True)))
    return made


def test_expected_words_have_the_highest_probability_of_any_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("qwen3")
    (found,) = expander(monkeypatch).expand(["When does it leave?"])
    embedder = KVEmbedder(model, EmbeddingSettings(route="off"))
    (window,) = embedder.prompt.windows(["When does it leave?"], "query", window=embedder.window)
    with torch.inference_mode():
        chances = model.hf(input_ids=torch.tensor([window.ids])).logits[0].softmax(-1)
    best = chances[[*range(window.start, window.stop), -1]].amax(0)
    # "the", put in by hand, is a stop word and has no id that the text could already have.
    assert found == pytest.approx({name: float(best[40 + i]) for i, name in enumerate(Words.names)}, rel=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_words_of_the_text_are_not_expected_and_the_number_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    made = expander(monkeypatch)
    (found,) = made.expand(["The bus on Mondays"])
    assert "bus" not in found
    assert "monday" not in found
    assert len(made.expand(["When?"], most=1)[0]) == 1
    assert made.expand([]) == []


def test_the_most_expected_word_gets_the_whole_weight() -> None:
    assert weighted({"sun": 0.2, "sky": 0.05}, 0.4) == pytest.approx({"sun": 0.4, "sky": 0.1})
    assert weighted({}, 0.4) == {}


def test_the_vocabulary_gives_whole_words_only() -> None:
    from nnm_core.model.load import load_model

    mini = load_model("nnm-mini")
    words = set(Expander(mini, SparseEncoder(None))._words.values())
    assert {"water", "school"} <= words
    assert not words & {"the", "and", "canc,"}
    assert all(word.isalpha() and len(word) >= 3 for word in words)
