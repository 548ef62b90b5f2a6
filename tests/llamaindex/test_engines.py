"""Every query and chat engine, sync, async and streaming: memories are injected or read, never lost, and the answers
are those of reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode
from llama_index.core.tools import QueryEngineTool
from tests.llamaindex.reader import TEXTS, filled, in_a_loop

from llamaindex_nnm import NNMLLM, NNMMemory, NNMQueryEngine, NNMRetriever, NNMSynthesizer, receipts
from nnm_core import NNM

QUESTION = "Who leads the Falcon project, and where is the spare key?"
MODES = ["compact", "refine", "tree_summarize", "accumulate", "compact_accumulate", "simple_summarize"]
NO_STREAM = {"accumulate", "compact_accumulate", "sub_question"}


class First(BaseSelector):
    """Chooses the first engine; a random model cannot."""

    def _select(self, choices: Any, query: Any) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=0, reason="the first")])

    async def _aselect(self, choices: Any, query: Any) -> SelectorResult:
        return self._select(choices, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None: ...


class Twice(BaseQuestionGenerator):
    """Asks the same tool two questions."""

    def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return [SubQuestion(sub_question=q, tool_name="facts") for q in ("Who leads Falcon?", "Where is the key?")]

    async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None: ...


@dataclass
class Setup:
    """What an engine is made of."""

    nnm: NNM
    llm: NNMLLM
    streaming: bool = False
    retriever: NNMRetriever = field(init=False)

    def __post_init__(self) -> None:
        self.retriever = NNMRetriever(self.nnm, 3)

    def simple(self, mode: str = "compact") -> RetrieverQueryEngine:
        return RetrieverQueryEngine.from_args(
            self.retriever, llm=self.llm, response_mode=mode, streaming=self.streaming
        )


def _sub_question(s: Setup) -> Any:
    tool = QueryEngineTool.from_defaults(s.simple(), name="facts", description="Facts.")
    synthesizer = get_response_synthesizer(llm=s.llm, use_async=False)
    return SubQuestionQueryEngine(Twice(), synthesizer, [tool], verbose=False, use_async=False)


def _router(s: Setup) -> Any:
    tool = QueryEngineTool.from_defaults(s.simple(), name="facts", description="Facts.")
    return RouterQueryEngine(selector=First(), query_engine_tools=[tool], llm=s.llm)


ENGINES: dict[str, Callable[[Setup], Any]] = {
    **{mode: lambda s, mode=mode: s.simple(mode) for mode in MODES},
    "citation": lambda s: CitationQueryEngine(
        s.retriever, llm=s.llm, response_synthesizer=get_response_synthesizer(llm=s.llm, streaming=s.streaming)
    ),
    "router": _router,
    "sub_question": _sub_question,
    "by_reference": lambda s: NNMQueryEngine.from_nnm(s.nnm, 3, llm=s.llm, streaming=s.streaming),
    "by_reference_with_metadata": lambda s: RetrieverQueryEngine(
        s.retriever,
        response_synthesizer=NNMSynthesizer(s.llm, metadata_mode=MetadataMode.LLM, streaming=s.streaming),
    ),
}


def ask(setup: Setup, name: str, how: str) -> tuple[str, list[Any], set[str]]:
    """The answer, the receipts and the ids of the sources."""
    engine = ENGINES[name](setup)

    async def later() -> Any:
        response = await engine.aquery(QUESTION)
        return (await response.get_response()) if setup.streaming else response

    with receipts() as taken:
        if how.startswith("async"):
            response = in_a_loop(later())
        else:
            response = engine.query(QUESTION)
            response = response.get_response() if setup.streaming else response
    sources = {scored.node.node_id for scored in response.source_nodes if scored.node.node_id in TEXTS}
    return str(response), taken, sources or set(TEXTS)


def outcomes(taken: list[Any]) -> dict[str, set[str]]:
    """For each memory what happened to it in the calls of one query."""
    found: dict[str, set[str]] = {}
    for receipt in taken:
        for key, outcome in receipt.memories.items():
            found.setdefault(key, set()).add(outcome)
    return found


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with filled() as engine:
        yield engine


@pytest.mark.parametrize("how", ["sync", "async", "stream", "async stream"])
@pytest.mark.parametrize("name", ENGINES)
def test_memories_are_injected_or_read_and_answers_are_those_of_reading(nnm: NNM, name: str, how: str) -> None:
    streaming = "stream" in how
    if streaming and name in NO_STREAM:
        pytest.skip("LlamaIndex does not stream this one")
    read, control, _ = ask(Setup(nnm, NNMLLM(nnm, max_tokens=6, mode="read"), streaming), name, how)
    setup = Setup(nnm, NNMLLM(nnm, max_tokens=6), streaming)
    first, once, sources = ask(setup, name, how)
    second, again, _ = ask(setup, name, how)
    assert first == second == read
    assert all(receipt.tokens_injected == 0 for receipt in control)
    assert set(outcomes(control)) == set(outcomes(once)) == set(outcomes(again)) == sources
    # What has been read behind the same prompt once is injected from then on: every memory, in every call.
    assert set().union(*outcomes(again).values()) == {"injected"}
    assert all(receipt.tier == "exact" for receipt in again if receipt.memories)
    assert sum(receipt.tokens_injected for receipt in again) > sum(len(TEXTS[key]) for key in sources)


@pytest.mark.parametrize("name", ["compact", "refine", "citation", "by_reference"])
def test_the_fast_policy_injects_from_the_first_question_on(nnm: NNM, name: str) -> None:
    _, taken, sources = ask(Setup(nnm, NNMLLM(nnm, max_tokens=4, policy="fast")), name, "sync")
    assert set(outcomes(taken)) == sources
    assert set().union(*outcomes(taken).values()) == {"injected"}
    assert {receipt.tier for receipt in taken if receipt.memories} == {"composed"}


def test_a_lone_memory_by_reference_is_exact_from_its_first_question_on(nnm: NNM) -> None:
    with receipts() as taken:
        NNMQueryEngine.from_nnm(nnm, 1, llm=NNMLLM(nnm, max_tokens=4)).query("Who leads Falcon?")
    assert taken[0].memories == {"falcon": "injected"}
    assert taken[0].tier == "exact"


CHATS: dict[str, Callable[[Setup, NNMMemory], Any]] = {
    "context": lambda s, memory: ContextChatEngine.from_defaults(s.retriever, llm=s.llm, memory=memory),
    "condense_plus_context": lambda s, memory: CondensePlusContextChatEngine.from_defaults(
        s.retriever, llm=s.llm, memory=memory
    ),
}
TALK = ["Who leads the Falcon project of this company?", "And where in the house does the spare key hang?"]


def talk(setup: Setup, name: str, how: str, session: str) -> tuple[list[str], list[Any]]:
    """The answers and receipts of a conversation."""
    engine = CHATS[name](setup, NNMMemory(setup.nnm, session=session))

    async def later() -> list[str]:
        answers = []
        for question in TALK:
            if "stream" in how:
                response = await engine.astream_chat(question)
                answers.append("".join([piece async for piece in response.async_response_gen()]))
            else:
                answers.append((await engine.achat(question)).response)
        return answers

    def now() -> list[str]:
        if "stream" in how:
            return ["".join(engine.stream_chat(question).response_gen) for question in TALK]
        return [engine.chat(question).response for question in TALK]

    with receipts() as taken:
        answers = in_a_loop(later()) if how.startswith("async") else now()
    return answers, taken


@pytest.mark.parametrize("how", ["sync", "async", "stream", "async stream"])
@pytest.mark.parametrize("name", CHATS)
def test_conversations_find_their_memories_and_answer_as_reading_does(nnm: NNM, name: str, how: str) -> None:
    read, control = talk(Setup(nnm, NNMLLM(nnm, max_tokens=6, mode="read")), name, how, "one")
    nnm.forget([memory.id for memory in nnm.find({"_llamaindex.kind": "turn"})])
    first, once = talk(Setup(nnm, NNMLLM(nnm, max_tokens=6)), name, how, "one")
    nnm.forget([memory.id for memory in nnm.find({"_llamaindex.kind": "turn"})])
    second, again = talk(Setup(nnm, NNMLLM(nnm, max_tokens=6)), name, how, "one")
    assert first == second == read
    assert len(control) == len(once) == len(again)
    for told in (once, again):
        assert all(set(TEXTS) <= set(outcomes(told)) for _ in told)
    last = [receipt for receipt in again if set(TEXTS) & set(receipt.memories)][-1]
    assert {key: last.memories[key] for key in TEXTS} == dict.fromkeys(TEXTS, "injected")
