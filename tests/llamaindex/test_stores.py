"""The store, the embedder and the retriever on the engine's own vectors: one reading, recall, leases, tenants."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.schema import ImageNode, IndexNode, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from tests.llamaindex.reader import TEXTS, filled, open_engine

from llamaindex_nnm import (
    NNMLLM,
    NNMEmbedding,
    NNMMemory,
    NNMRetriever,
    NNMSynthesizer,
    NNMVectorStore,
)
from nnm_core import NNM, FilterError, InvalidInputError, StoreMismatchError


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with filled() as engine:
        yield engine


@pytest.fixture
def empty() -> Iterator[NNM]:
    with open_engine() as engine:
        yield engine


def index_of(nnm: NNM, **store: Any) -> VectorStoreIndex:
    documents = [Document(text=text, doc_id=key, metadata={"room": key}) for key, text in TEXTS.items()]
    storage = StorageContext.from_defaults(vector_store=NNMVectorStore(nnm, **store))
    return VectorStoreIndex.from_documents(documents, storage_context=storage, embed_model=NNMEmbedding(nnm))


def test_an_index_embeds_each_text_once_and_captures_each_text_once(
    empty: NNM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nnm_core.ingest as ingest

    embedded: list[str] = []
    captured: list[int] = []
    embedder, capture = type(empty._collection.embedder), ingest.capture
    encode = embedder.encode

    def counted(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
        embedded.extend(texts)
        return encode(self, texts, *args, **kwargs)

    def counted_capture(model: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        captured.append(len(rows))
        return capture(model, rows, *args, **kwargs)

    monkeypatch.setattr(embedder, "encode", counted)
    monkeypatch.setattr(ingest, "capture", counted_capture)
    index = index_of(empty)
    # With the metadata, as LlamaIndex embeds them; the state is of the text alone, so it fits every prompt.
    assert embedded == [f"room: {key}\n\n{text}" for key, text in TEXTS.items()]
    assert sum(captured) == len(TEXTS)
    embedded.clear()
    assert index.as_retriever().retrieve("Who leads Falcon?")[0].node.metadata["room"] == "falcon"
    assert embedded == ["Who leads Falcon?"]


def test_an_index_over_memories_that_were_added_otherwise(nnm: NNM) -> None:
    index = VectorStoreIndex.from_vector_store(NNMVectorStore(nnm), embed_model=NNMEmbedding(nnm))
    found = index.as_retriever(similarity_top_k=1).retrieve("Who leads Falcon?")[0]
    assert (found.node.node_id, found.node.get_content(), found.node.metadata) == (
        "falcon",
        TEXTS["falcon"],
        {"room": "falcon"},
    )


def test_recall_by_the_engine_or_by_the_vector_alone(nnm: NNM) -> None:
    asked = VectorStoreQuery(
        query_embedding=NNMEmbedding(nnm).get_query_embedding("Falcon"), query_str="Falcon", similarity_top_k=3
    )
    engine, vector = (NNMVectorStore(nnm, recall=recall).query(asked) for recall in ("engine", "vector"))
    assert engine.ids == [hit.memory.id for hit in nnm.search("Falcon", 3)]
    assert vector.similarities == [hit.score for hit in nnm.search("Falcon", 3, alpha=1.0)]


@pytest.mark.parametrize("found_by", ["store", "retriever", "mmr"])
def test_what_is_found_may_be_injected_in_its_scope_alone(nnm: NNM, found_by: str) -> None:
    if found_by == "retriever":
        NNMRetriever(nnm, 1, scope="mine").retrieve("Falcon")
    else:
        mode = VectorStoreQueryMode.MMR if found_by == "mmr" else VectorStoreQueryMode.DEFAULT
        vector = nnm.embed(TEXTS["falcon"])[0].tolist()
        NNMVectorStore(nnm, scope="mine", recall="vector").query(VectorStoreQuery(vector, 1, mode=mode))
    prompt = " ".join(TEXTS.values())
    assert set(NNMLLM(nnm, max_tokens=1, scope="mine").complete(prompt).raw["nnm"]["memories"]) == {"falcon"}
    assert NNMLLM(nnm, max_tokens=1).complete(prompt).raw["nnm"]["memories"] == {}


def test_embeddings_come_in_all_or_none_and_of_one_kind(empty: NNM) -> None:
    store = NNMVectorStore(empty)
    vector = NNMEmbedding(empty).get_text_embedding("One.")
    with pytest.raises(InvalidInputError, match="1 of 2 nodes"):
        store.add([TextNode(text="One.", embedding=vector), TextNode(text="Two.")])
    store.add([TextNode(text="One.", id_="one"), TextNode(text="Two.", id_="two")])
    with pytest.raises(StoreMismatchError):
        NNMVectorStore(empty, vectors="foreign").add([TextNode(text="Three.", embedding=[1.0, 0.0])])
    with pytest.raises(InvalidInputError, match="no embedding"):
        NNMVectorStore(empty, vectors="foreign").add([TextNode(text="Three.")])
    with pytest.raises(InvalidInputError, match="no text"):
        store.add([ImageNode(image_url="http://x/y.png")])


def test_node_kinds_survive(empty: NNM) -> None:
    store = NNMVectorStore(empty)
    store.add([IndexNode(text="A summary.", index_id="inner", id_="i"), Document(text="A document.", id_="d")])
    index_node, document = store.get_nodes(["i", "d"])
    assert isinstance(index_node, IndexNode)
    assert index_node.index_id == "inner"
    assert isinstance(document, Document)


def test_filters_and_deletions_that_say_nothing_or_too_much_raise(nnm: NNM) -> None:
    store = NNMVectorStore(nnm)
    with pytest.raises(InvalidInputError, match="clear"):
        store.delete_nodes()
    with pytest.raises(FilterError, match="quotation mark"):
        store.get_nodes(filters=MetadataFilters(filters=[MetadataFilter(key='a"b', value=1)]))
    with pytest.raises(FilterError, match="empty"):
        store.get_nodes(filters=MetadataFilters(filters=[MetadataFilters(filters=[])]))
    with pytest.raises(InvalidInputError, match="text_search"):
        store.query(VectorStoreQuery(query_str="x", mode=VectorStoreQueryMode.TEXT_SEARCH))
    with pytest.raises(InvalidInputError, match="reserved"):
        store.add([TextNode(text="x", metadata={"_llamaindex": 1})])
    assert [node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=[]))] == list(TEXTS)


def test_deleting_keeps_the_history_unless_it_is_to_be_forgotten(nnm: NNM) -> None:
    NNMVectorStore(nnm).delete_nodes(["bins"])
    assert [memory.text for memory in nnm.history("bins")] == [TEXTS["bins"]]
    NNMVectorStore(nnm, forget=True).delete_nodes(["key"])
    assert nnm.history("key") == []


def test_a_store_on_disk_goes_on(tmp_path: Path) -> None:
    with open_engine(tmp_path) as nnm:
        index_of(nnm)
    with open_engine(tmp_path) as nnm:
        index = VectorStoreIndex.from_vector_store(NNMVectorStore(nnm), embed_model=NNMEmbedding(nnm))
        found = index.as_retriever(similarity_top_k=1).retrieve("Who leads Falcon?")[0]
        assert found.node.ref_doc_id == "falcon"


def test_tenants_see_nothing_of_each_other() -> None:
    with filled(namespace="red") as red, open_engine(namespace="blue") as blue:
        assert NNMRetriever(blue).retrieve("Falcon") == []
        assert NNMVectorStore(blue).get_nodes() == []
        NNMRetriever(red, 1).retrieve("Falcon")
        told = NNMLLM(blue, max_tokens=1).complete(TEXTS["falcon"]).raw
        assert told["nnm"]["memories"] == {}
        assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_retrievers_take_transformed_queries_and_filters(nnm: NNM) -> None:
    by_custom = NNMRetriever(nnm, 1).retrieve(QueryBundle("Who?", custom_embedding_strs=["the spare key", "a door"]))
    assert by_custom[0].node.node_id == "key"
    room = MetadataFilters(filters=[MetadataFilter(key="room", value="bins")])
    for filters in (room, {"room": "bins"}):
        assert [n.node.node_id for n in NNMRetriever(nnm, 3, filters=filters).retrieve("the spare key")] == ["bins"]


async def test_async_embedding_adding_and_recall_leave_the_loop_free(empty: NNM) -> None:
    gaps: list[float] = []

    async def heart() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    beating = asyncio.create_task(heart())
    started = time.perf_counter()
    embedding, store = NNMEmbedding(empty), NNMVectorStore(empty)
    texts = [f"Number {n}: " + "word " * 200 for n in range(12)]
    vectors = await embedding.aget_text_embedding_batch(texts)
    await store.async_add([TextNode(text=t, embedding=v) for t, v in zip(texts, vectors, strict=True)])
    await asyncio.gather(*(NNMRetriever(empty).aretrieve(f"number {n}") for n in range(8)))
    took = time.perf_counter() - started
    beating.cancel()
    assert len(gaps) > 5
    assert max(gaps) < max(0.3, took / 3)


def test_nothing_here_pickles_silently_and_copies_share_the_engine(nnm: NNM) -> None:
    llm = NNMLLM(nnm)
    parts: list[Any] = [NNMEmbedding(nnm), NNMVectorStore(nnm), NNMRetriever(nnm), NNMSynthesizer(llm), NNMMemory(nnm)]
    for part in parts:
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(part)
    for part in parts[:2]:
        assert copy.deepcopy(part).nnm is nnm
        assert part.to_dict()["class_name"] == type(part).__name__
        assert "nnm" not in part.to_dict()
