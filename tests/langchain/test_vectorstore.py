"""The vector store beyond the standard suite: ids, metadata, filters, scores, variety, indexing, injection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from tests.langchain.engines import BINS, FALCON, KEY, open_tiny

from langchain_nnm import ChatNNM, NNMEmbeddings, NNMVectorStore
from langchain_nnm._search import diverse
from nnm_core import NNM, FilterError, InvalidInputError, StoreMismatchError

FAKE = DeterministicFakeEmbedding(size=6)


class Letters(Embeddings):
    """Counts letters: a foreign embedder whose nearest neighbours can be told in advance."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[text.count(letter) + 0.01 for letter in "abc"] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture
def empty() -> Iterator[NNM]:
    with open_tiny() as nnm:
        yield nnm


@pytest.fixture(params=["own", "foreign"])
def store(request: pytest.FixtureRequest, empty: NNM) -> NNMVectorStore:
    return NNMVectorStore(empty, None if request.param == "own" else FAKE)


# -- ids and metadata ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["7", "UPPER-lower", "a/b\\c\n", "日本語", "' OR 1=1 --", "x" * 5000, " ", "\x00"])
def test_any_string_is_an_id(store: NNMVectorStore, name: str) -> None:
    assert store.add_documents([Document(BINS)], ids=[name]) == [name]
    assert [d.id for d in store.get_by_ids([name])] == [name]
    assert [d.id for d in store.similarity_search("bins")] == [name]
    store.delete([name])
    assert store.get_by_ids([name]) == []


def test_where_ids_come_from(store: NNMVectorStore) -> None:
    documents = [Document("a", id="own"), Document("b", id="own"), Document("c"), Document("c", metadata={"n": 1})]
    ids = store.add_documents(documents, ids=[None, "given", None, None])
    assert ids[:2] == ["own", "given"]
    assert len(set(ids)) == 4
    assert store.add_documents(documents[2:]) == ids[2:]  # adding again changes nothing
    assert documents[2].id is None
    assert [d.page_content for d in store.get_by_ids(["given", "nobody", "own"])] == ["b", "a"]


def test_the_last_of_several_with_one_id_wins(store: NNMVectorStore) -> None:
    assert store.add_texts(["first", "second"], ids=["a", "a"]) == ["a", "a"]
    assert [d.page_content for d in store.get_by_ids(["a"])] == ["second"]


METADATA = st.dictionaries(
    st.text(max_size=8).filter(lambda text: text.isprintable()),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        # no lone surrogates: they are no Unicode text
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.$\"'", max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(METADATA)
def test_metadata_come_back_equal(metadata: dict[str, Any]) -> None:
    store = _kept()
    store.add_documents([Document(BINS, id="a", metadata=metadata)])
    assert store.similarity_search("bins", k=1)[0].metadata == metadata
    assert list(store.get_by_ids(["a"])[0].metadata) == list(metadata)


def _kept() -> NNMVectorStore:
    if not hasattr(_kept, "store"):
        _kept.store = NNMVectorStore(open_tiny())  # type: ignore[attr-defined]
    return _kept.store  # type: ignore[attr-defined,no-any-return]


def test_wrong_input_is_named_and_harms_nothing(store: NNMVectorStore) -> None:
    for call in (
        lambda: store.add_texts(["a", "b"], ids=["a"]),
        lambda: store.add_texts(["a", ""]),
        lambda: store.add_texts(["a"], metadatas=[{"x": object()}]),
        lambda: store.add_texts(["a"], refresh=True),
        lambda: store.delete(["a"], where={}),
        lambda: store.similarity_search("a", where={"n": 1}),
    ):
        with pytest.raises(InvalidInputError):
            call()
    with pytest.raises(InvalidInputError, match="engine"):
        NNMVectorStore.from_texts(["a"], FAKE)
    assert store.nnm.stats()["memories"] == 0


def test_deleting_without_ids_deletes_all(store: NNMVectorStore) -> None:
    store.add_texts(["a", "b"])
    store.delete()
    assert store.nnm.stats()["memories"] == 0


def test_forgetting_leaves_no_history(store: NNMVectorStore) -> None:
    store.add_texts([BINS], ids=["a"])
    store.delete(["a"])
    assert store.nnm.history("a")
    assert store.forget(["a"]) == 1
    assert not store.nnm.history("a")


# -- search -------------------------------------------------------------------------------------------------------


def numbered(store: NNMVectorStore) -> NNMVectorStore:
    store.add_texts([f"text {n}" for n in range(8)], [{"n": n, "even": n % 2 == 0} for n in range(8)])
    return store


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"n": 3}, {3}),
        ({"n": [1, 2, 99]}, {1, 2}),
        ({"n": {"$gte": 6}}, {6, 7}),
        ({"even": True, "n": {"$lt": 4}}, {0, 2}),
        ({"$or": [{"n": 1}, {"$not": {"n": {"$lte": 6}}}]}, {1, 7}),
        ({"nothing": 1}, set()),
        (None, set(range(8))),
    ],
)
def test_filters(store: NNMVectorStore, condition: Any, expected: set[int]) -> None:
    numbered(store)
    found = store.similarity_search("text", k=8, filter=condition)
    assert {document.metadata["n"] for document in found} == expected
    retriever = store.as_retriever(search_kwargs={"k": 8, "filter": condition})
    assert {document.metadata["n"] for document in retriever.invoke("text")} == expected
    varied = store.max_marginal_relevance_search("text", k=8, filter=condition)
    assert {document.metadata["n"] for document in varied} == expected


def test_qdrant_filters(store: NNMVectorStore) -> None:
    from qdrant_client import models

    def field(**condition: Any) -> models.FieldCondition:
        return models.FieldCondition(key="metadata.n", **condition)

    high = field(range=models.Range(gte=6))
    even = models.FieldCondition(key="metadata.even", match=models.MatchValue(value=True))
    nested = models.Filter(
        should=[models.Filter(must=[high], must_not=[even]), field(match=models.MatchAny(any=[0, 3]))]
    )
    numbered(store)
    for condition, expected in ((models.Filter(must=[high]), {6, 7}), (nested, {0, 3, 7})):
        assert {d.metadata["n"] for d in store.similarity_search("text", k=8, filter=condition)} == expected
    circle = models.GeoRadius(center=models.GeoPoint(lon=0, lat=0), radius=1)
    near = models.Filter(must=[field(geo_radius=circle)])
    with pytest.raises(FilterError):
        store.similarity_search("text", filter=near)


@pytest.mark.parametrize("condition", ["n = 3", {"n": {"$near": 3}}, {"$nor": [{"n": 3}]}, {"n": object()}, 7])
def test_filters_that_are_not_understood_raise(store: NNMVectorStore, condition: Any) -> None:
    with pytest.raises(FilterError):
        numbered(store).similarity_search("text", filter=condition)


def test_another_embedders_vectors_are_compared_as_they_are(empty: NNM) -> None:
    store = NNMVectorStore(empty, Letters())
    store.add_texts(["aaa", "bbb", "abc"])
    found = store.similarity_search_with_score("aa", k=3)
    assert [document.page_content for document, _ in found] == ["aaa", "abc", "bbb"]
    assert found[0][1] == pytest.approx(1.0, abs=1e-3)
    assert [d.page_content for d in store.similarity_search_by_vector([0.0, 1.0, 0.0], k=1)] == ["bbb"]
    assert store.similarity_search("bbb", k=1, alpha=0)[0].page_content == "bbb"


def test_own_vectors_by_vector(empty: NNM) -> None:
    store = NNMVectorStore(empty)
    store.add_texts([BINS, FALCON, KEY])
    vector = NNMEmbeddings(nnm=empty).embed_documents([FALCON])[0]
    assert store.similarity_search_by_vector(vector, k=1)[0].page_content == FALCON
    assert store.embeddings.embed_query(FALCON) == NNMEmbeddings(nnm=empty).embed_query(FALCON)


def test_one_namespace_holds_vectors_of_one_kind(empty: NNM) -> None:
    NNMVectorStore(empty).add_texts([BINS])
    with pytest.raises(StoreMismatchError):
        NNMVectorStore(empty, FAKE).add_texts([KEY])


@pytest.mark.parametrize("alpha", [None, 0, 0.5, 1])
def test_relevance_is_between_0_and_1_and_thresholds_hold(store: NNMVectorStore, alpha: float | None) -> None:
    numbered(store)
    options = {} if alpha is None else {"alpha": alpha}
    found = store.similarity_search_with_relevance_scores("text 3", k=8, **options)
    assert len(found) == 8
    assert all(0 <= score <= 1 for _, score in found)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    threshold = found[2][1]
    search = {"k": 8, "score_threshold": threshold, **options}
    kept = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=search).invoke("text 3")
    assert len(kept) == sum(score >= threshold for _, score in found)


# -- variety ------------------------------------------------------------------------------------------------------


def test_lambda_1_is_relevance_and_0_is_variety(store: NNMVectorStore) -> None:
    numbered(store)
    ranked = [document.id for document in store.similarity_search("text 3", k=5)]
    assert [d.id for d in store.max_marginal_relevance_search("text 3", k=5, lambda_mult=1)] == ranked
    with pytest.raises(InvalidInputError, match="lambda_mult"):
        store.max_marginal_relevance_search("text 3", lambda_mult=2)


def test_variety_prefers_what_is_different(empty: NNM) -> None:
    store = NNMVectorStore(empty, Letters())
    store.add_texts(["aaaa", "aaa", "ab", "c"])
    assert [d.page_content for d in store.max_marginal_relevance_search("aaaa", k=2, lambda_mult=0)] == ["aaaa", "c"]
    by_vector = store.max_marginal_relevance_search_by_vector([4.01, 0.01, 0.01], k=2, lambda_mult=0)
    assert [d.page_content for d in by_vector] == ["aaaa", "c"]
    assert store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "lambda_mult": 0}).invoke("aaaa") == by_vector


def test_variety_by_hand() -> None:
    likeness: Sequence[Sequence[float]] = [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]
    assert diverse([0.9, 0.8, 0.1], likeness, k=3, lambda_mult=1) == [0, 1, 2]
    assert diverse([0.9, 0.8, 0.1], likeness, k=2, lambda_mult=0.5) == [0, 2]
    assert diverse([0.9, 0.8, 0.1], likeness, k=9, lambda_mult=0.9) == [0, 1, 2]


# -- the asynchronous side ----------------------------------------------------------------------------------------


async def test_asynchronous_calls_give_the_same(store: NNMVectorStore) -> None:
    ids = await store.aadd_texts([f"text {n}" for n in range(8)], [{"n": n} for n in range(8)])
    options: dict[str, Any] = {"k": 3, "filter": {"n": {"$gte": 2}}}
    vector = store.embeddings.embed_query("text 3")
    pairs = [
        (store.similarity_search("text 3", **options), await store.asimilarity_search("text 3", **options)),
        (
            store.similarity_search_with_score("text 3", **options),
            await store.asimilarity_search_with_score("text 3", **options),
        ),
        (
            store.similarity_search_with_relevance_scores("text 3", **options),
            await store.asimilarity_search_with_relevance_scores("text 3", **options),
        ),
        (
            store.similarity_search_by_vector(vector, **options),
            await store.asimilarity_search_by_vector(vector, **options),
        ),
        (
            store.max_marginal_relevance_search("text 3", **options),
            await store.amax_marginal_relevance_search("text 3", **options),
        ),
        (
            store.max_marginal_relevance_search_by_vector(vector, **options),
            await store.amax_marginal_relevance_search_by_vector(vector, **options),
        ),
        (store.get_by_ids(ids[:2]), await store.aget_by_ids(ids[:2])),
    ]
    for synchronous, asynchronous in pairs:
        assert synchronous == asynchronous
        assert synchronous
    await store.adelete(ids)
    assert await store.aget_by_ids(ids) == []
    with pytest.raises(InvalidInputError, match="2 texts but 1"):
        await store.aadd_texts(["a", "b"], [{}])


# -- indexing -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using SHA-1:UserWarning")
@pytest.mark.parametrize("encoder", ["sha1", "sha256", "sha512", "blake2b", lambda document: document.page_content])
def test_indexing_with_every_key_encoder(store: NNMVectorStore, encoder: Any) -> None:
    records = InMemoryRecordManager(namespace="test")
    records.create_schema()

    def run(texts: list[str]) -> tuple[int, int, int]:
        documents = [Document(text, metadata={"source": text[:4]}) for text in texts]
        done = index(documents, records, store, cleanup="full", source_id_key="source", key_encoder=encoder)
        return done["num_added"], done["num_skipped"], done["num_deleted"]

    assert run([BINS, KEY]) == (2, 0, 0)
    assert run([BINS, KEY]) == (0, 2, 0)
    assert run([BINS, FALCON]) == (1, 1, 1)
    assert {d.page_content for d in store.similarity_search("the", k=9)} == {BINS, FALCON}


# -- injection ----------------------------------------------------------------------------------------------------


def test_what_any_store_finds_is_injected(store: NNMVectorStore) -> None:
    store.add_texts([BINS, FALCON, KEY], ids=["bins", "falcon", "key"])
    found = store.as_retriever(search_kwargs={"k": 3, "scope": "s"}).invoke("Falcon")
    chat = ChatNNM(nnm=store.nnm, max_tokens=1, policy="fast")
    prompt = "\n\n".join(document.page_content for document in found)
    assert set(chat.invoke(prompt, scope="s").response_metadata["nnm"]["memories"].values()) == {"injected"}
    assert chat.invoke(prompt).response_metadata["nnm"]["memories"] == {}


def test_texts_are_read_once_by_a_store_of_its_own(empty: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    embedder = empty._collection.embedder
    encode = embedder.encode
    monkeypatch.setattr(embedder, "encode", lambda texts, *a, **k: (seen.extend(texts), encode(texts, *a, **k))[1])
    NNMVectorStore.from_documents([Document(BINS, id="b")], NNMEmbeddings(nnm=empty))
    assert seen == [BINS]
    assert empty.get("b")[0].text == BINS
