"""The vector side of the engine: texts embedded elsewhere, vectors of other embedders, search by vector and weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InvalidInputError, StoreMismatchError

TEXTS = ["The bins are collected on Tuesday.", "Maria leads the Falcon project.", "The key hangs behind the door."]
IDS = ["bins", "falcon", "key"]
AXES = [[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 2.0]]


def open_store(path: Path | None = None, **options: Any) -> NNM:
    return NNM.open(options.pop("model", tiny_reader()), path, system=None, **options)


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with open_store() as opened:
        yield opened


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, nnm: NNM) -> list[str]:
    """The texts that the embedder was given."""
    seen: list[str] = []
    encode = type(nnm._collection.embedder).encode

    def counted(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts, *args, **kwargs)

    monkeypatch.setattr(type(nnm._collection.embedder), "encode", counted)
    return seen


def test_what_was_embedded_already_is_not_embedded_again(nnm: NNM, passes: list[str]) -> None:
    vectors = nnm.embed(TEXTS)
    assert vectors.shape == (3, nnm._collection.embedder.dim)
    assert vectors.dtype == np.float32
    nnm.add(TEXTS, IDS, vectors=vectors)
    assert passes == TEXTS
    with open_store() as plain:
        plain.add(TEXTS, IDS)
        one, two = ([(h.memory.id, h.score) for h in store.search("who?", alpha=1)] for store in (nnm, plain))
        assert [i for i, _ in one] == [i for i, _ in two]
        assert [s for _, s in one] == pytest.approx([s for _, s in two], abs=1e-4)
    for kept, given in zip(nnm.vectors(IDS), vectors, strict=True):
        assert kept == pytest.approx(given, abs=1e-3)
    assert nnm.vectors(["nobody"]) == [None]


def test_own_vectors_search_as_their_texts_do(nnm: NNM) -> None:
    nnm.add([f"Room {n} is free." for n in range(20)])  # enough for whitening
    by_text = nnm.search("Which room?", k=5, alpha=1)
    by_vector = nnm.search(vector=nnm.embed("Which room?", "query")[0], k=5)
    assert [h.memory.id for h in by_text] == [h.memory.id for h in by_vector]
    compared = nnm.comparable(np.stack([v for v in nnm.vectors([h.memory.id for h in by_vector]) if v is not None]))
    asked = nnm.comparable(nnm.embed("Which room?", "query"))[0]
    assert compared @ asked == pytest.approx([h.score for h in by_vector], abs=2e-3)


def test_vectors_of_another_embedder_are_compared_and_given_back_as_they_are(nnm: NNM, passes: list[str]) -> None:
    assert nnm.search(vector=[1.0, 0.0, 0.0]) == []
    nnm.add(TEXTS, IDS, vectors=AXES, foreign=True)
    assert passes == []
    with pytest.raises(InvalidInputError, match="shape"):
        nnm.search(vector=[1.0, 0.0])
    hits = nnm.search(vector=[1.0, 0.0, 0.0], k=3)
    assert [(h.memory.id, round(h.score, 5)) for h in hits] == [("bins", 1.0), ("falcon", 0.6), ("key", 0.0)]
    assert np.array_equal(np.stack([v for v in nnm.vectors(IDS) if v is not None]), np.float32(AXES))
    assert nnm.search("Falcon project")[0].memory.id == "falcon"  # words still work
    assert nnm.answer("Who?", memories=["falcon"], max_tokens=2).receipt.memories == {"falcon": "injected"}
    with pytest.raises(InvalidInputError, match="another embedder"):
        nnm.search("Falcon", alpha=0.5)


def test_alpha_weighs_words_against_vectors(nnm: NNM) -> None:
    nnm.add(TEXTS, IDS, vectors=AXES, foreign=True)
    asked: dict[str, Any] = {"query": "key door", "vector": [0.9, 0.1, 0.0], "k": 3}
    assert nnm.search(**asked, alpha=0)[0].memory.id == "key"
    assert next(h.memory.id for h in nnm.search(**asked, alpha=1)) == "bins"
    assert {h.memory.id for h in nnm.search(**asked, alpha=0.5)} == set(IDS)
    assert next(h.memory.id for h in nnm.search(**asked, alpha=0.9)) == "bins"
    assert next(h.memory.id for h in nnm.search(**asked, alpha=0.1)) == "key"
    with pytest.raises(InvalidInputError, match="alpha"):
        nnm.search(**asked, alpha=1.5)


def test_a_namespace_keeps_to_one_kind_of_vectors(nnm: NNM) -> None:
    nnm.add(TEXTS[:1], IDS[:1], vectors=AXES[:1], foreign=True)
    with pytest.raises(StoreMismatchError, match="another embedder"):
        nnm.add(TEXTS[1:2], IDS[1:2], vectors=[[1.0, 0.0]], foreign=True)
    nnm.add(TEXTS[1], "falcon")  # without a vector: found by words
    assert [h.memory.id for h in nnm.search(vector=[1.0, 0.0, 0.0])] == ["bins"]
    nnm.delete(IDS)
    nnm.add(TEXTS, IDS)  # empty again: own vectors
    assert nnm.search("who?", alpha=1)
    with pytest.raises(StoreMismatchError, match="its own model"):
        nnm.add(TEXTS[:1], ["again"], vectors=AXES[:1], foreign=True)


def test_foreign_vectors_survive_growing_reopening_and_another_model(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    with open_store(tmp_path) as nnm:
        nnm.add([f"Room {n} is free." for n in range(40)], [str(n) for n in range(40)], vectors=points, foreign=True)
        before = [(h.memory.id, round(h.score, 4)) for h in nnm.search(vector=points[7], k=4)]
        assert before[0] == ("7", 1.0)
    for options in ({}, {"model": tiny_reader("llama"), "rebuild": True}):
        with open_store(tmp_path, **options) as nnm:
            assert [(h.memory.id, round(h.score, 4)) for h in nnm.search(vector=points[7], k=4)] == before
            assert nnm.vectors(["7"])[0] == pytest.approx(points[7])


def test_a_new_vector_for_an_old_text_replaces_the_old_one(nnm: NNM) -> None:
    nnm.add(TEXTS, IDS, vectors=AXES, foreign=True)
    again = nnm.add(TEXTS, IDS, vectors=[AXES[2], *AXES[1:]], foreign=True)
    assert [m.version for m in again] == [2, 1, 1]
    assert nnm.search(vector=[1.0, 0.0, 0.0])[0].memory.id == "falcon"


def test_find_lists_memories_by_metadata_without_leasing_them(nnm: NNM) -> None:
    nnm.add(TEXTS, IDS, [{"n": 1}, {"n": 2}, {"n": 3}])
    assert [m.id for m in nnm.find({"n": {"$gte": 2}})] == ["falcon", "key"]
    assert [m.id for m in nnm.find()] == IDS
    assert nnm.leases.find(TEXTS[0]) == (TEXTS[0],)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"vectors": [[1.0]]}, "3 texts need"),
        ({"vectors": [[1.0], [2.0], ["x"]]}, "array of numbers"),
        ({"vectors": [[float("nan")]] * 3}, "finite"),
        ({"vectors": [[1.0, 2.0]] * 3}, "dim|shape|dimension"),
    ],
)
def test_bad_vectors_are_named_and_nothing_is_stored(nnm: NNM, call: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        nnm.add(TEXTS, IDS, **call)
    assert nnm.stats()["memories"] == 0
    with pytest.raises(InvalidInputError, match="empty"):
        nnm.search()
    with pytest.raises(InvalidInputError, match="zero"):
        nnm.search(vector=[0.0, 0.0])


def test_a_query_that_was_embedded_already_is_not_embedded_again(nnm: NNM, passes: list[str]) -> None:
    nnm.add(TEXTS, IDS)
    by_text = [(h.memory.id, dict(h.parts)) for h in nnm.search("Who leads Falcon?", k=3)]
    vector = nnm.embed("Who leads Falcon?", "query")[0]
    passes.clear()
    assert [(h.memory.id, dict(h.parts)) for h in nnm.search("Who leads Falcon?", k=3, vector=vector)] == by_text
    assert passes == []
