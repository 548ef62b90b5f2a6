"""Chat turns as memories, memories by reference, and what traces show of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import llama_index.core.instrumentation as instrument
import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from tests.llamaindex.reader import TEXTS, filled, open_engine

from llamaindex_nnm import NNMLLM, NNMMemory, NNMQueryEngine, NNMRetriever, NNMSynthesizer, NNMVectorStore, receipts
from nnm_core import NNM, ContextOverflowError


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with filled() as engine:
        yield engine


def said(*texts: str) -> list[ChatMessage]:
    roles = (MessageRole.USER, MessageRole.ASSISTANT)
    return [ChatMessage(role=roles[n % 2], content=text) for n, text in enumerate(texts)]


def contents(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


# -- memory ---------------------------------------------------------------------------------------------------------


def test_turns_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    with open_engine(tmp_path) as nnm:
        memory = NNMMemory.from_defaults(nnm=nnm, session="s")
        memory.put_messages(said("Hello there.", "Good morning.", "Hello there."))
        assert contents(memory.get_all()) == contents(memory.get()) == ["Hello there.", "Good morning.", "Hello there."]
    with open_engine(tmp_path) as nnm:
        assert contents(NNMMemory(nnm, session="s").get_all()) == ["Hello there.", "Good morning.", "Hello there."]
        assert NNMMemory(nnm, session="other").get_all() == []


def test_turns_are_not_nodes(nnm: NNM) -> None:
    NNMMemory(nnm).put(ChatMessage("The Falcon project is late."))
    assert {n.node.node_id for n in NNMRetriever(nnm, 9).retrieve("Falcon project")} <= set(TEXTS)
    assert len(NNMVectorStore(nnm).get_nodes()) == len(TEXTS)
    with_turns = NNMRetriever(nnm, 9, include_turns=True).retrieve("Falcon project late")
    assert "turn/chat/0" in {n.node.node_id for n in with_turns}
    NNMVectorStore(nnm).clear()
    assert len(NNMMemory(nnm).get_all()) == 1


def test_old_turns_leave_the_window_and_are_recalled_for_a_question(nnm: NNM) -> None:
    memory = NNMMemory(nnm, recent=4, recalled=1)
    memory.put_messages(said("Ana lives in Lisbon with her dog.", "I see.", "It rains.", "Yes.", "And now?", "Snow."))
    assert contents(memory.get()) == ["Yes.", "And now?", "Snow."]
    history = memory.get("Where does Ana live?")
    assert history[-1].role == MessageRole.SYSTEM
    assert history[-1].content == "Earlier in this conversation:\nuser: Ana lives in Lisbon with her dog."
    memory.put(ChatMessage("Where does Ana live?"))
    assert [m.role.value for m in memory.get("Where does Ana live?")][-2:] == ["system", "user"]
    assert contents(memory.get_all())[0] == "Ana lives in Lisbon with her dog."


def test_the_window_keeps_to_its_tokens(nnm: NNM) -> None:
    memory = NNMMemory(nnm, token_limit=60)
    memory.put_messages(said(*(f"Turn {n} is about something." for n in range(6))))
    assert contents(memory.get()) == ["Turn 5 is about something."]


def test_the_history_is_injected_the_next_time(nnm: NNM) -> None:
    llm, memory = NNMLLM(nnm, max_tokens=4), NNMMemory(nnm)
    memory.put_messages(said("A first turn that is long enough.", "A second turn that is long enough."))
    told = []
    for question in ("One?", "Two?"):
        prompt = [*memory.get(), ChatMessage(question)]
        told.append(llm.chat(prompt))
        assert told[-1].message.content == llm.chat(prompt, mode="read").message.content
    assert set(told[0].raw["nnm"]["memories"].values()) == {"read"}
    assert set(told[1].raw["nnm"]["memories"].values()) == {"injected"}
    assert told[1].raw["nnm"]["tier"] == "exact"


def test_set_reads_only_what_is_new_and_reset_forgets(nnm: NNM) -> None:
    memory = NNMMemory(nnm)
    memory.put_messages(said("One turn.", "Two turns.", "Three turns."))
    memory.set(said("One turn.", "Two turns.", "Another."))
    assert contents(memory.get_all()) == ["One turn.", "Two turns.", "Another."]
    assert [m.version for m in nnm.get(["turn/chat/0", "turn/chat/1"])] == [1, 1]
    memory.reset()
    assert memory.get_all() == []
    assert nnm.history("turn/chat/0") == []
    memory.put(ChatMessage(""))  # nothing to keep, and no error
    assert contents(memory.get_all()) == [""]


# -- synthesizer ----------------------------------------------------------------------------------------------------


def scored(*nodes: TextNode) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1.0) for node in nodes]


def test_nodes_that_are_no_memories_are_read_and_not_lost(nnm: NNM) -> None:
    edited = TextNode(id_="bins", text="The bins are collected on Friday.")
    foreign = TextNode(id_="elsewhere", text="The moon is far away.")
    known = TextNode(id_="falcon", text=TEXTS["falcon"])
    with receipts() as taken:
        NNMSynthesizer(NNMLLM(nnm, max_tokens=4)).synthesize("What?", scored(known, edited, foreign))
    assert taken[0].memories == {"falcon": "injected", "bins": "read", "elsewhere": "read"}
    prompt = nnm.answer("What?", memories=["falcon"], max_tokens=4)
    assert taken[0].tokens_read + taken[0].tokens_injected > prompt.receipt.tokens_read + len(edited.text)


def test_visible_metadata_stand_in_the_prompt_and_texts_are_still_injected(nnm: NNM) -> None:
    synthesizer = NNMSynthesizer(NNMLLM(nnm, max_tokens=4), metadata_mode=MetadataMode.LLM)
    node = TextNode(
        id_="falcon",
        text=TEXTS["falcon"],
        metadata={"page": 7, "secret": "x"},
        excluded_llm_metadata_keys=["secret"],
        text_template="[{metadata_str}] {content}",
    )
    messages, options = synthesizer._call("Who?", [], [node])
    assert messages[-1].content == f"Context:\n[page: 7] {TEXTS['falcon']}\n\nQuestion: Who?"
    assert [memory.id for memory in options["references"]] == ["falcon"]
    with receipts() as taken:
        for _ in range(2):
            synthesizer.synthesize("Who?", scored(node))
    assert [r.memories for r in taken] == [{"falcon": "read"}, {"falcon": "injected"}]


def test_what_does_not_fit_raises_or_is_dropped(nnm: NNM) -> None:
    nnm.add([f"Long {n} " + "word " * 900 for n in range(5)], [f"long{n}" for n in range(5)])
    retriever, llm = NNMRetriever(nnm, 5), NNMLLM(nnm, max_tokens=2)
    nodes = retriever.retrieve("long word")
    with pytest.raises(ContextOverflowError):
        NNMSynthesizer(llm).synthesize("Long?", nodes)
    with receipts() as taken:
        NNMSynthesizer(llm, overflow="drop").synthesize("Long?", nodes)
    assert 0 < len(taken[0].memories) < 5
    assert any("dropped" in reason for reason in taken[0].fallbacks)


def test_no_nodes_give_the_empty_response(nnm: NNM) -> None:
    with receipts() as taken:
        response = NNMSynthesizer(NNMLLM(nnm), empty_response="Nothing.").synthesize("Who?", [])
    assert str(response) == "Nothing."
    assert taken == []


# -- traces ---------------------------------------------------------------------------------------------------------


class Watch(BaseEventHandler):
    """Keeps every event."""

    events: ClassVar[list[Any]] = []

    @classmethod
    def class_name(cls) -> str:
        return "Watch"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)


def test_traces_show_what_was_done_without_texts_by_reference_or_tensors(nnm: NNM) -> None:
    watch, dispatcher = Watch(), instrument.get_dispatcher()
    dispatcher.add_event_handler(watch)
    try:
        NNMQueryEngine.from_nnm(nnm, 1, llm=NNMLLM(nnm, max_tokens=2)).query("Who leads Falcon?")
    finally:
        dispatcher.event_handlers.remove(watch)
    names = [event.class_name() for event in watch.events]
    for name in ("QueryStartEvent", "RetrievalEndEvent", "LLMChatStartEvent", "NNMReceiptEvent", "LLMChatEndEvent"):
        assert names.count(name) == 1
    start = next(event for event in watch.events if event.class_name() == "LLMChatStartEvent")
    assert TEXTS["falcon"] not in str(start.model_dump())
    assert start.additional_kwargs["memories"] == ["falcon"]
    receipt = next(event for event in watch.events if event.class_name() == "NNMReceiptEvent")
    end = next(event for event in watch.events if event.class_name() == "LLMChatEndEvent")
    assert receipt.memories == {"falcon": "injected"}
    assert receipt.span_id == end.span_id is not None
    assert "tensor" not in str([event.model_dump() for event in watch.events])
