"""What LlamaIndex promises of an index with a vector store, on ours: filters, streaming, chat engines, inserts,
refreshes, deletions by source document, pipelines."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from tests.llamaindex.reader import TEXTS, open_engine

from llamaindex_nnm import NNMLLM, NNMEmbedding, NNMMemory, NNMRetriever, NNMVectorStore, receipts
from nnm_core import NNM, InvalidInputError

ROOMS = {"falcon": "work", "bins": "home", "key": "home"}


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with open_engine() as opened:
        yield opened


@pytest.fixture
def _collected() -> Iterator[None]:
    """LlamaIndex keeps a chat's turns in SQLite and leaves the connection to the garbage collector."""
    yield
    gc.collect()


@pytest.fixture
def index(nnm: NNM) -> VectorStoreIndex:
    return make_index(nnm)


def documents() -> list[Document]:
    return [Document(text=text, doc_id=key, metadata={"room": ROOMS.get(key, "other")}) for key, text in TEXTS.items()]


def make_index(nnm: NNM, **store: Any) -> VectorStoreIndex:
    storage = StorageContext.from_defaults(vector_store=NNMVectorStore(nnm, **store))
    return VectorStoreIndex.from_documents(documents(), storage_context=storage, embed_model=NNMEmbedding(nnm))


def sources(nnm: NNM) -> list[str]:
    """Source documents that the store has nodes of."""
    return sorted(node.ref_doc_id or "" for node in NNMVectorStore(nnm).get_nodes())


def test_filters_choose_among_the_nodes(index: VectorStoreIndex) -> None:
    home = MetadataFilters(filters=[MetadataFilter(key="room", value="home", operator=FilterOperator.EQ)])
    found = index.as_retriever(similarity_top_k=9, filters=home).retrieve("Who leads Falcon?")
    assert sorted(scored.node.ref_doc_id or "" for scored in found) == ["bins", "key"]
    either = MetadataFilters(
        filters=[MetadataFilter(key="room", value="work"), MetadataFilter(key="room", value="home")],
        condition=FilterCondition.OR,
    )
    assert len(index.as_retriever(similarity_top_k=9, filters=either).retrieve("Falcon")) == 3


async def test_a_streaming_query_engine_says_what_the_plain_one_says(nnm: NNM, index: VectorStoreIndex) -> None:
    llm = NNMLLM(nnm, max_tokens=8)
    plain = str(index.as_query_engine(llm=llm, similarity_top_k=2).query("Who leads Falcon?"))
    streamed: Any = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True)
    with receipts() as taken:
        pieces = list(streamed.query("Who leads Falcon?").response_gen)
        later = [piece async for piece in (await streamed.aquery("Who leads Falcon?")).async_response_gen()]
    assert len(pieces) > 1
    assert "".join(pieces) == "".join(later) == plain
    assert [set(receipt.memories.values()) for receipt in taken] == [{"injected"}] * 2


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore:.*aiosqlite.*:ResourceWarning")
@pytest.mark.parametrize("mode", ["context", "condense_question", "condense_plus_context", "simple", "best"])
async def test_every_chat_engine_of_an_index_answers_as_if_it_read(
    nnm: NNM, index: VectorStoreIndex, mode: Any
) -> None:
    def chat(**options: Any) -> Any:
        if mode == "simple":
            from llama_index.core.chat_engine import SimpleChatEngine

            return SimpleChatEngine.from_defaults(llm=NNMLLM(nnm, max_tokens=6, **options))
        return index.as_chat_engine(chat_mode=mode, llm=NNMLLM(nnm, max_tokens=6, **options), similarity_top_k=2)

    read = chat(mode="read")
    expected = [str(read.chat("Who leads Falcon?")), str(read.chat("And where is the key?"))]
    engine = chat()
    assert [str(engine.chat("Who leads Falcon?")), str(engine.chat("And where is the key?"))] == expected
    assert len(engine.chat_history) == 4
    engine.reset()
    assert engine.chat_history == []
    assert str(await engine.achat("Who leads Falcon?")) == expected[0]
    streaming = chat()
    assert "".join(streaming.stream_chat("Who leads Falcon?").response_gen) == expected[0]
    awaited = await streaming.astream_chat("And where is the key?")
    assert "".join([piece async for piece in awaited.async_response_gen()]) == expected[1]


def test_nodes_are_inserted_and_taken_out_by_their_source_document(nnm: NNM, index: VectorStoreIndex) -> None:
    index.insert(Document(text="The roof was mended in May.", doc_id="roof"))
    index.insert_nodes([TextNode(text="The cellar is dry.", id_="cellar")])
    assert index.as_retriever(similarity_top_k=1).retrieve("roof mended")[0].node.ref_doc_id == "roof"
    assert "cellar" in [node.node_id for node in NNMVectorStore(nnm).get_nodes()]
    index.delete_ref_doc("roof", delete_from_docstore=True)
    index.delete_nodes(["cellar"])
    assert sources(nnm) == sorted(TEXTS)


async def test_refreshing_replaces_what_has_changed(nnm: NNM, index: VectorStoreIndex) -> None:
    changed = documents()
    changed[0].set_content("The Falcon project has ended.")
    assert index.refresh_ref_docs(changed) == [True, False, False]
    assert sources(nnm) == sorted(TEXTS)
    texts = [node.get_content() for node in NNMVectorStore(nnm).get_nodes()]
    assert "The Falcon project has ended." in texts
    assert await index.arefresh_ref_docs(changed) == [False] * 3
    index.update_ref_doc(changed[0])
    # One that is made anew over the store has no docstore that knows them: it would add them again; this replaces them.
    fresh = VectorStoreIndex.from_vector_store(NNMVectorStore(nnm), embed_model=NNMEmbedding(nnm))
    for document in changed:
        fresh.update_ref_doc(document)
    assert sources(nnm) == sorted(TEXTS)


def test_a_pipeline_upserts_and_deletes(nnm: NNM, tmp_path: Path) -> None:
    docstore = SimpleDocumentStore()

    def pipeline(strategy: DocstoreStrategy) -> IngestionPipeline:
        steps = [SentenceSplitter(chunk_size=128, chunk_overlap=0), NNMEmbedding(nnm)]
        return IngestionPipeline(
            transformations=steps, docstore=docstore, vector_store=NNMVectorStore(nnm), docstore_strategy=strategy
        )

    first = pipeline(DocstoreStrategy.UPSERTS)
    assert len(first.run(documents=documents())) == len(TEXTS)
    assert pipeline(DocstoreStrategy.UPSERTS).run(documents=documents()) == []  # all known
    changed = documents()
    changed[0].set_content("The Falcon project has ended.")
    assert len(pipeline(DocstoreStrategy.UPSERTS).run(documents=changed)) == 1
    assert sources(nnm) == sorted(TEXTS)
    pipeline(DocstoreStrategy.UPSERTS_AND_DELETE).run(documents=changed[:2])
    assert sources(nnm) == sorted(document.doc_id for document in changed[:2])
    first.persist(str(tmp_path))
    again = pipeline(DocstoreStrategy.UPSERTS)
    again.load(str(tmp_path))
    assert again.run(documents=changed[:2]) == []


async def test_a_pipeline_runs_on_an_event_loop(nnm: NNM) -> None:
    steps = [SentenceSplitter(chunk_size=128, chunk_overlap=0), NNMEmbedding(nnm)]
    nodes = await IngestionPipeline(transformations=steps, vector_store=NNMVectorStore(nnm)).arun(documents=documents())
    assert sources(nnm) == sorted(TEXTS)
    assert all(node.embedding is not None for node in nodes)


def test_an_index_is_found_again_in_the_store_alone(tmp_path: Path) -> None:
    with open_engine(path=tmp_path / "memory") as nnm:
        index = make_index(nnm)
        index.storage_context.persist(str(tmp_path / "llama"))
    with open_engine(path=tmp_path / "memory") as nnm:
        fresh = VectorStoreIndex.from_vector_store(NNMVectorStore(nnm), embed_model=NNMEmbedding(nnm))
        assert fresh.as_retriever(similarity_top_k=1).retrieve("Who leads Falcon?")[0].node.ref_doc_id == "falcon"
        storage = StorageContext.from_defaults(vector_store=NNMVectorStore(nnm), persist_dir=str(tmp_path / "llama"))
        loaded: Any = load_index_from_storage(storage, embed_model=NNMEmbedding(nnm))
        assert loaded.as_retriever(similarity_top_k=1).retrieve("Who leads Falcon?")[0].node.ref_doc_id == "falcon"


@pytest.mark.parametrize("part", [NNMLLM, NNMEmbedding, NNMVectorStore, NNMRetriever, NNMMemory])
def test_what_is_no_engine_or_no_field_is_refused_at_once(nnm: NNM, part: Any) -> None:
    for nothing in (None, "nnm-mini"):
        with pytest.raises(InvalidInputError, match="must be an open engine"):
            part(nothing)
    with pytest.raises((InvalidInputError, TypeError), match="scop"):
        part(nnm, scop="mine")
