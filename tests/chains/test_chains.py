"""Chains and agents that people have: only the retriever, or the retriever and the model, are exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, dynamic_prompt
from langchain_classic.chains import (
    ConversationalRetrievalChain,
    RetrievalQA,
    create_history_aware_retriever,
    create_retrieval_chain,
)
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import (
    ContextualCompressionRetriever,
    EnsembleRetriever,
    MultiQueryRetriever,
    ParentDocumentRetriever,
)
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
    LLMChainExtractor,
    LLMChainFilter,
)
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.stores import InMemoryStore
from langchain_core.tools import create_retriever_tool, tool
from langchain_text_splitters import CharacterTextSplitter
from tests.chains.world import QUESTION, TEXTS, Receipts, chat, join, retriever

from langchain_nnm import NNMLLM, NNMMiddleware, NNMRetriever, NNMVectorStore
from nnm_core import NNM

BOTH = {"bins", "falcon"}
STUFF = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {input}")


def lcel(nnm: NNM, source: Runnable[Any, Any] | None = None) -> Runnable[Any, Any]:
    prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
    context = (source or retriever(nnm)) | join
    return {"context": context, "question": RunnablePassthrough()} | prompt | chat(nnm) | StrOutputParser()


def retrieval_chain(nnm: NNM) -> Runnable[Any, Any]:
    chain = create_retrieval_chain(retriever(nnm), create_stuff_documents_chain(chat(nnm), STUFF))
    return (lambda question: {"input": question}) | chain  # type: ignore[operator,no-any-return]


def retrieval_qa(nnm: NNM) -> Runnable[Any, Any]:
    return (lambda question: {"query": question}) | RetrievalQA.from_chain_type(chat(nnm), retriever=retriever(nnm))  # type: ignore[operator,no-any-return]


def store_chain(nnm: NNM) -> Runnable[Any, Any]:
    return lcel(nnm, NNMVectorStore(nnm).as_retriever(search_kwargs={"k": 2}))


def mmr_chain(nnm: NNM) -> Runnable[Any, Any]:
    options = {"k": 2, "fetch_k": 2}
    return lcel(nnm, NNMVectorStore(nnm).as_retriever(search_type="mmr", search_kwargs=options))


CHAINS: dict[str, Callable[[NNM], Runnable[Any, Any]]] = {
    "lcel": lcel,
    "create_retrieval_chain": retrieval_chain,
    "RetrievalQA": retrieval_qa,
    "vector store": store_chain,
    "mmr": mmr_chain,
}


@pytest.mark.parametrize("name", CHAINS)
def test_invoke_stream_and_batch(nnm: NNM, receipts: Receipts, name: str) -> None:
    chain = CHAINS[name](nnm)
    chain.invoke(QUESTION, receipts.config)
    list(chain.stream(QUESTION, receipts.config))
    chain.batch([QUESTION, QUESTION], receipts.config)
    assert len(receipts.all) == 4
    for receipt in receipts.all:
        assert receipt["memories"] == dict.fromkeys(receipt["memories"], "injected")
        assert set(receipt["memories"]) == BOTH


@pytest.mark.parametrize("name", CHAINS)
async def test_the_asynchronous_twins(nnm: NNM, receipts: Receipts, name: str) -> None:
    chain = CHAINS[name](nnm)
    await chain.ainvoke(QUESTION, receipts.config)
    async for _ in chain.astream(QUESTION, receipts.config):
        pass
    await chain.abatch([QUESTION, QUESTION], receipts.config)
    async for _ in chain.astream_events(QUESTION, receipts.config, version="v2"):
        pass
    assert len(receipts.all) == 5
    assert all(set(receipt["memories"].values()) == {"injected"} for receipt in receipts.all)
    assert all(set(receipt["memories"]) == BOTH for receipt in receipts.all)


def test_a_chain_with_a_text_model(nnm: NNM) -> None:
    info: list[Any] = []
    llm = NNMLLM(nnm=nnm, max_tokens=2, policy="fast")
    prompt = PromptTemplate.from_template("{context}\n\nQuestion: {question}")
    chain = {"context": retriever(nnm) | join, "question": RunnablePassthrough()} | prompt
    text = chain.invoke(QUESTION).text
    info = [chunk.generation_info for chunk in llm._stream(text) if chunk.generation_info]
    assert set(info[0]["nnm"]["memories"].values()) == {"injected"}
    assert (chain | llm).invoke(QUESTION) == "".join((chain | llm).stream(QUESTION))


def test_map_reduce_and_refine_answer_once_a_document(nnm: NNM, receipts: Receipts) -> None:
    for kind, calls in (("map_reduce", 3), ("refine", 2)):
        receipts.all.clear()
        qa = RetrievalQA.from_chain_type(chat(nnm), chain_type=kind, retriever=retriever(nnm))
        qa.invoke({"query": QUESTION}, receipts.config)
        assert len(receipts.all) == calls
        seen = [set(receipt["memories"]) for receipt in receipts.all[:2]]
        assert seen == [{"falcon"}, {"bins"}] or seen == [{"bins"}, {"falcon"}]
        assert all(set(receipt["memories"].values()) == {"injected"} for receipt in receipts.all[:2])


# -- conversations ------------------------------------------------------------------------------------------------


def test_a_history_aware_chain(nnm: NNM, receipts: Receipts) -> None:
    rephrase = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("user", "{input}")])
    answer = ChatPromptTemplate.from_messages(
        [("system", "Answer from:\n{context}"), MessagesPlaceholder("chat_history"), ("user", "{input}")]
    )
    aware = create_history_aware_retriever(FakeListChatModel(responses=[QUESTION]), retriever(nnm), rephrase)
    chain = create_retrieval_chain(aware, create_stuff_documents_chain(chat(nnm), answer))
    history = [HumanMessage("Hello"), AIMessage("Hi")]
    chain.invoke({"input": "And when?", "chat_history": history}, receipts.config)
    assert receipts.injected() == BOTH


def test_a_conversational_chain(nnm: NNM, receipts: Receipts) -> None:
    chain = ConversationalRetrievalChain.from_llm(chat(nnm), retriever(nnm))
    chain.invoke({"question": QUESTION, "chat_history": []}, receipts.config)
    assert receipts.injected() == BOTH


def test_earlier_turns_keep_their_memories(nnm: NNM, receipts: Receipts) -> None:
    model = chat(nnm, policy="auto")
    first = [HumanMessage(f"{join(retriever(nnm).invoke(QUESTION))}\n\n{QUESTION}")]
    history = [*first, model.invoke(first)]
    model.invoke([*history, HumanMessage("And why?")], receipts.config)
    assert receipts.injected() == BOTH
    assert receipts.last["tier"] == "exact"


# -- retrievers around the retriever --------------------------------------------------------------------------------


class Length(BaseCrossEncoder):
    """Counts letters in place of a cross encoder."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [float(len(text)) for _, text in text_pairs]


def compressed(nnm: NNM, compressor: Any, k: int = 2) -> BaseRetriever:
    return ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever(nnm, k))


def multi_query(nnm: NNM) -> BaseRetriever:
    llm = FakeListLLM(responses=["Who leads the Falcon project?\nWhen are the bins collected?"])
    return MultiQueryRetriever.from_llm(retriever(nnm, 1), llm)


def ensemble(nnm: NNM) -> BaseRetriever:
    return EnsembleRetriever(
        retrievers=[retriever(nnm, 2), NNMVectorStore(nnm).as_retriever(search_kwargs={"k": 2, "alpha": 0})]
    )


def reranked(nnm: NNM) -> BaseRetriever:
    return compressed(nnm, CrossEncoderReranker(model=Length(), top_n=1), k=3)


def extracted(nnm: NNM) -> BaseRetriever:
    first_words = FakeListLLM(responses=["Maria leads", "The bins are collected on Tuesday."])
    return compressed(nnm, LLMChainExtractor.from_llm(first_words))


def filtered(nnm: NNM) -> BaseRetriever:
    return compressed(nnm, LLMChainFilter.from_llm(FakeListLLM(responses=["YES", "NO"])))


def split(nnm: NNM, overlap: int) -> BaseRetriever:
    splitter = CharacterTextSplitter(separator=" ", chunk_size=30, chunk_overlap=overlap)
    return compressed(nnm, DocumentCompressorPipeline(transformers=[splitter]))


RETRIEVERS: dict[str, tuple[Callable[[NNM], BaseRetriever], int]] = {
    "MultiQuery": (multi_query, 2),
    "Ensemble": (ensemble, 2),
    "reranker": (reranked, 1),
    "extractor": (extracted, 0),  # other words: read
    "filter": (filtered, 1),
    "splitter": (lambda nnm: split(nnm, 0), 2),  # pieces that are put together again, with white space between
    "splitter with overlap": (lambda nnm: split(nnm, 15), 0),  # repeated words: read
}


@pytest.mark.parametrize("name", RETRIEVERS)
def test_retrievers_around_the_retriever(nnm: NNM, receipts: Receipts, name: str) -> None:
    make, expected = RETRIEVERS[name]
    lcel(nnm, make(nnm)).invoke(QUESTION, receipts.config)
    assert len(receipts.injected()) == expected
    assert set(receipts.last["memories"].values()) <= {"injected"}


def test_parents_are_injected_when_they_are_memories(nnm: NNM, receipts: Receipts) -> None:
    """Small pieces are searched; the model gets their parents, which are injected once they are memories too."""
    parents = InMemoryStore()
    with NNM.open(nnm.model, namespace="pieces", system=None) as pieces:
        source = ParentDocumentRetriever(
            vectorstore=NNMVectorStore(pieces),
            docstore=parents,
            child_splitter=CharacterTextSplitter(separator=" ", chunk_size=30, chunk_overlap=0),
            search_kwargs={"k": 3},
        )
        source.add_documents([Document(text, id=name) for name, text in TEXTS.items()])
        found = source.invoke("Who leads the Falcon project?")
        assert TEXTS["falcon"] in {document.page_content for document in found}
        message = chat(nnm).invoke(join(found), memories=["falcon"])
    assert message.response_metadata["nnm"]["memories"]["falcon"] == "injected"


# -- agents -------------------------------------------------------------------------------------------------------


def answer_of(result: dict[str, Any]) -> AIMessage:
    message = result["messages"][-1]
    assert isinstance(message, AIMessage)
    return message


def retrieval_tool(nnm: NNM, *, artifact: bool, lease: bool) -> Any:
    source = NNMRetriever(nnm=nnm, k=2, scope="" if lease else "nobody's")

    if artifact:

        @tool(response_format="content_and_artifact")
        def recall(query: str) -> tuple[str, list[Document]]:
            """Recall what is known."""
            found = source.invoke(query)
            return "\n\n".join(f"Source: {d.metadata}\nContent: {d.page_content}" for d in found), found

        return recall

    @tool
    def recall_text(query: str) -> str:
        """Recall what is known."""
        return join(source.invoke(query))

    return recall_text


@pytest.mark.parametrize(
    ("artifact", "lease", "expected"),
    [(True, True, BOTH), (True, False, BOTH), (False, True, BOTH), (False, False, set())],
)
async def test_an_agent_with_a_retrieval_tool(scripted: NNM, artifact: bool, lease: bool, expected: set[str]) -> None:
    agent = create_agent(chat(scripted), [retrieval_tool(scripted, artifact=artifact, lease=lease)])
    asked = {"messages": [HumanMessage(QUESTION)]}
    for result in (agent.invoke(asked), await agent.ainvoke(asked)):
        kinds = [type(message) for message in result["messages"]]
        assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
        receipt = answer_of(result).response_metadata["nnm"]
        assert {name for name, how in receipt["memories"].items() if how == "injected"} == expected


def test_an_agent_with_langchains_own_retriever_tool(scripted: NNM) -> None:
    for form in ("content", "content_and_artifact"):
        recall = create_retriever_tool(retriever(scripted), "recall", "Recall what is known.", response_format=form)
        result = create_agent(chat(scripted), [recall]).invoke({"messages": [HumanMessage(QUESTION)]})
        assert set(answer_of(result).response_metadata["nnm"]["memories"]) == BOTH


def test_a_two_step_agent_that_puts_documents_into_the_system_prompt(nnm: NNM) -> None:
    @dynamic_prompt
    def with_context(request: ModelRequest[Any]) -> str:
        return f"Answer from:\n\n{join(retriever(nnm).invoke(request.state['messages'][-1].text))}"

    agent = create_agent(chat(nnm), [], middleware=[with_context])
    receipt = answer_of(agent.invoke({"messages": [HumanMessage(QUESTION)]})).response_metadata["nnm"]
    assert receipt["memories"] == dict.fromkeys(receipt["memories"], "injected")
    assert set(receipt["memories"]) == BOTH


def test_an_agent_with_tools_and_the_middleware(scripted: NNM) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    agent = create_agent(chat(scripted), [add], middleware=[NNMMiddleware(scripted, k=2)])
    result = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    for message in (m for m in result["messages"] if isinstance(m, AIMessage)):
        assert set(message.response_metadata["nnm"]["memories"].values()) == {"injected"}
        assert set(message.response_metadata["nnm"]["memories"]) == BOTH
