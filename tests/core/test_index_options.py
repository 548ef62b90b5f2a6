"""Options of a namespace's index: vectors in 8 bits, token level, re-routed layers. Kept with it, changed on demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.core.families import loaded

from nnm_core import NNM
from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.errors import InvalidInputError, StoreMismatchError
from nnm_core.storage.index import Point, open_index

WORDS = ("owl", "fox", "cat", "bat", "dog", "hen", "pig", "cow", "ant", "bee", "elk", "emu", "rat", "yak", "ape", "cod")
TEXTS = [f"The {word} lives in the wood. It eats {word} food all day. At night the {word} sleeps." for word in WORDS]


def vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def test_8_bits_keep_scores_near_and_take_a_quarter_of_the_space(tmp_path: Path) -> None:
    rows, asked = vectors(2000, 256), vectors(20, 256, seed=1)
    sizes, scores = {}, {}
    for eight in (False, True):
        index = open_index(tmp_path / str(eight), namespace="n", dim=256, eight_bits=eight)
        index.upsert([Point(uuid(i), row) for i, row in enumerate(rows)])
        scores[eight] = [{hit.id: hit.score for hit in index.search_dense(query, limit=2000)} for query in asked]
        index.close()
        sizes[eight] = sum(path.stat().st_blocks * 512 for path in (tmp_path / str(eight)).rglob("*"))
    differences = [abs(b[key] - a[key]) for a, b in zip(scores[False], scores[True], strict=True) for key in a]
    assert max(differences) < 0.004
    assert max(differences) > 0  # it is another storage, not the same one
    assert sizes[True] < 0.6 * sizes[False]


def test_an_index_is_opened_as_it_was_made(tmp_path: Path) -> None:
    open_index(tmp_path / "i", namespace="n", dim=8, eight_bits=True).close()
    open_index(tmp_path / "i", namespace="n", dim=8, eight_bits=True).close()
    with pytest.raises(StoreMismatchError, match="8 bits"):
        open_index(tmp_path / "i", namespace="n", dim=8)


@pytest.mark.parametrize("on_disk", [True, False])
def test_token_level_scores_candidates_anew_and_says_so(tmp_path: Path, *, on_disk: bool) -> None:
    path = tmp_path / "memory" if on_disk else None
    with NNM.open(loaded("qwen3"), path, tokens=True, int8=on_disk) as nnm:
        nnm.add(TEXTS, ids=list(WORDS))
        hits = nnm.search("Where does the fox live?", k=5)
        assert len(hits) == 5
        assert all(hit.parts["tokens"] > 0 and hit.parts["tokens_rank"] >= 1 for hit in hits)
        level = nnm._collection.token_level
        assert level is not None
        point = nnm._collection.index.retrieve([nnm._collection.entries(["fox"])[0].point])[0]  # type: ignore[union-attr]  # it is there
        (made,) = level.documents([TEXTS[1]])
        np.testing.assert_allclose(point.tokens, made, atol=0.02 if on_disk else 1e-5)
        query = level.query("Where does the fox live?")
        fox = next(hit for hit in hits if hit.memory.id == "fox")
        assert fox.parts["tokens"] == pytest.approx(float((query @ made.T).max(1).sum()), rel=0.01)


def test_memories_added_one_by_one_are_compared_on_one_scale() -> None:
    with NNM.open(loaded("qwen3"), tokens=True) as nnm:
        level = nnm._collection.token_level
        assert level is not None
        for word, text in zip(WORDS, TEXTS, strict=True):
            nnm.add(text, ids=word)
        assert level.fitted
        points = nnm._collection.index.retrieve([e.point for e in nnm._collection.entries(WORDS) if e is not None])
        for point, made in zip(points, level.documents(TEXTS), strict=True):
            assert point is not None
            np.testing.assert_allclose(point.tokens, made, atol=1e-5)


def test_options_are_kept_and_can_be_changed(tmp_path: Path) -> None:
    model = loaded("qwen3")
    with NNM.open(model, tmp_path) as nnm:
        nnm.add(TEXTS, ids=list(WORDS))
        plain = nnm.search("the fox", k=3)
        assert "tokens" not in plain[0].parts
    with NNM.open(model, tmp_path, tokens=True, int8=True) as nnm:
        assert "tokens" in nnm.search("the fox", k=3)[0].parts
    with NNM.open(model, tmp_path) as nnm:
        assert "tokens" in nnm.search("the fox", k=3)[0].parts
        assert nnm._collection.index.count() == len(WORDS)
    with NNM.open(model, tmp_path, tokens=False, int8=False) as nnm:
        again = nnm.search("the fox", k=3)
        assert [hit.memory.id for hit in again] == [hit.memory.id for hit in plain]
        assert again[0].parts == pytest.approx(plain[0].parts)


def test_an_interrupted_change_is_carried_out_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("qwen3")
    with NNM.open(model, tmp_path) as nnm:
        nnm.add(TEXTS, ids=list(WORDS))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nnm_core.collection.open_index", killed)
        with pytest.raises(KeyboardInterrupt):
            NNM.open(model, tmp_path, int8=True)
    with NNM.open(model, tmp_path) as nnm:
        assert nnm._collection.index.count() == len(WORDS)
        assert len(nnm.search("the fox", k=3)) == 3


def test_foreign_vectors_have_no_token_level(tmp_path: Path) -> None:
    with NNM.open(loaded("qwen3"), tmp_path, tokens=True) as nnm:
        nnm.add(TEXTS[:3], vectors=vectors(3, 7), foreign=True)
        assert "tokens" not in nnm.search("the fox", k=1, alpha=0)[0].parts


def test_layers_are_measured_and_the_choice_is_kept(tmp_path: Path) -> None:
    model = loaded("qwen3")
    with NNM.open(model, tmp_path) as nnm:
        nnm.add(TEXTS, ids=list(WORDS))
        before = nnm._collection.embedder.settings
        profile = nnm.profile_layers(labels=0)
        assert [row.layer for row in profile.rows] == [0, 1, 2, 3]
        assert nnm._collection.embedder.settings == before
        old = nnm.vectors(["fox"])[0]
        applied = nnm.profile_layers(labels=0, apply=True)
        chosen = nnm._collection.embedder.settings
        assert chosen.layers == applied.chosen
        fresh = nnm.embed(TEXTS[1])[0]
        np.testing.assert_allclose(nnm.vectors(["fox"])[0], fresh, atol=2e-3)
        assert applied.chosen == before.layers or not np.allclose(old, fresh, atol=1e-3)
    with NNM.open(model, tmp_path) as nnm:
        assert nnm._collection.embedder.settings == chosen
        assert nnm._collection.journal.get_setting("layers")["by_rule"] == list(profile.by_rule)


@pytest.mark.parametrize("tokens", [False, True])
def test_what_was_fitted_to_another_embedding_is_fitted_anew(tmp_path: Path, *, tokens: bool) -> None:
    model = loaded("qwen3")
    with NNM.open(model, tmp_path, tokens=tokens) as nnm:
        nnm.add(TEXTS, ids=list(WORDS))
        settings = nnm._collection.embedder.settings
        nnm._collection.choose_embedding(replace(settings, layers=(0,)))
        nnm._reread()
        raw = np.stack([row for row in nnm.vectors(WORDS) if row is not None])
        statistics = SufficientStatistics(raw.shape[1])
        statistics.add(raw.astype(np.float32))
        expected = Whitening.fit(statistics).transform(raw)
        np.testing.assert_allclose(nnm.comparable(raw), expected, atol=1e-4)
        hits = nnm.search(TEXTS[1], k=3)
        assert hits[0].memory.id == "fox"
        assert ("tokens" in hits[0].parts) == tokens
    with NNM.open(model, tmp_path) as nnm:
        assert [hit.parts for hit in nnm.search(TEXTS[1], k=3)] == [pytest.approx(hit.parts, rel=1e-3) for hit in hits]


def test_layers_need_texts() -> None:
    with NNM.open(loaded("qwen3")) as nnm, pytest.raises(InvalidInputError):
        nnm.profile_layers()


def test_a_re_ranked_hit_explains_itself_and_cites(tmp_path: Path) -> None:
    with NNM.open(loaded("qwen3"), tmp_path) as nnm:
        long = [text + " It is seen by the river." * 3 for text in TEXTS]
        nnm.add(long, ids=list(WORDS))
        assert all(hit.span is None for hit in nnm.search("Where does the fox live?", k=3, rerank=True))
        nnm.tune(count=16)
        hits = nnm.search("Where does the fox live?", k=3, rerank=True)
        for hit in hits:
            assert {"first", "likelihood", "attention", "sparse"} <= set(hit.parts)
            assert hit.span is not None
            start, stop = hit.span
            assert 0 <= start < stop <= len(hit.memory.text)
            assert stop - start <= 32  # one token a byte
