"""Cases for LLMs: the eight ways to call one, what traces see, and that nobody waits for anybody else."""

# ruff: noqa: D102 - a case says by its name what it asks

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, LLMMetadata, MessageRole
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import PromptTemplate

from llamaindex_nnm.testing.base import Cases
from llamaindex_nnm.testing.needed import pytest

PROMPT = "Say something short."
CHAT = [ChatMessage(role=MessageRole.SYSTEM, content="Be brief."), ChatMessage(role=MessageRole.USER, content=PROMPT)]
# The fields in which an LLM keeps what nobody may see.
SECRETS = ("api_key", "token", "password", "secret", "authorization")


class LLMConformance(Cases):
    """Everything that is asked of an LLM; see the module for how to use it."""

    def make_llm(self) -> LLM:
        """A deterministic LLM."""
        raise NotImplementedError("say how to make an LLM")

    @pytest.fixture
    def traced(self) -> tuple[LLM, LlamaDebugHandler]:
        """An LLM and what its callbacks saw."""
        handler = LlamaDebugHandler(print_trace_on_end=False)
        llm = self.make_llm()
        llm.callback_manager = CallbackManager([handler])
        return llm, handler

    @pytest.fixture
    def llm(self) -> LLM:
        """An LLM."""
        return self.make_llm()

    def test_metadata_are_filled_in(self, llm: LLM) -> None:
        metadata = llm.metadata
        assert isinstance(metadata, LLMMetadata)
        assert metadata.context_window > metadata.num_output > 0
        assert metadata.model_name not in ("", "unknown")
        assert llm.class_name() == llm.to_dict()["class_name"]

    # -- eight ways ---------------------------------------------------------------------------------------------

    def test_a_completion_is_the_same_twice(self, llm: LLM) -> None:
        assert llm.complete(PROMPT).text == llm.complete(prompt=PROMPT).text != ""

    def test_a_chat_answers_as_the_assistant(self, llm: LLM) -> None:
        answer = llm.chat(CHAT)
        assert answer.message.role == MessageRole.ASSISTANT
        assert answer.message.content == llm.chat(messages=CHAT).message.content

    def test_a_chat_prompt_is_not_changed(self, llm: LLM) -> None:
        given = [message.model_copy(deep=True) for message in CHAT]
        llm.chat(given)
        assert [message.model_dump() for message in given] == [message.model_dump() for message in CHAT]

    def test_streamed_completions_add_up(self, llm: LLM) -> None:
        pieces = list(llm.stream_complete(PROMPT))
        assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].text == llm.complete(PROMPT).text
        assert all(one.text.startswith(other.text) for other, one in pairwise(pieces))

    def test_streamed_chats_add_up(self, llm: LLM) -> None:
        pieces = list(llm.stream_chat(CHAT))
        whole = llm.chat(CHAT).message.content
        assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].message.content == whole

    async def test_async_completions_are_the_same(self, llm: LLM) -> None:
        expected = llm.complete(PROMPT).text
        assert (await llm.acomplete(PROMPT)).text == expected
        pieces = [piece async for piece in await llm.astream_complete(PROMPT)]
        assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].text == expected

    async def test_async_chats_are_the_same(self, llm: LLM) -> None:
        expected = llm.chat(CHAT).message.content
        assert (await llm.achat(CHAT)).message.content == expected
        pieces = [piece async for piece in await llm.astream_chat(CHAT)]
        assert "".join(piece.delta or "" for piece in pieces) == expected

    def test_a_template_predicts_and_streams(self, llm: LLM) -> None:
        template = PromptTemplate("Say {what}.")
        assert "".join(llm.stream(template, what="something")) == llm.predict(template, what="something")

    def test_token_counts_are_told(self, llm: LLM) -> None:
        for answer in (llm.complete(PROMPT), llm.chat(CHAT), list(llm.stream_chat(CHAT))[-1]):
            counts = answer.additional_kwargs
            assert counts["prompt_tokens"] > 0
            assert counts["completion_tokens"] > 0
            assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]

    def test_raw_responses_are_plain_data(self, llm: LLM) -> None:
        for answer in (llm.complete(PROMPT), llm.chat(CHAT)):
            json.dumps(answer.raw)
            json.dumps(answer.model_dump(mode="json"))

    # -- traces -------------------------------------------------------------------------------------------------

    def _pairs(self, handler: LlamaDebugHandler) -> list[Any]:
        return handler.get_event_pairs(CBEventType.LLM)

    @pytest.mark.parametrize("how", ["argument", "keyword"])
    def test_a_completion_is_traced_once(self, traced: tuple[LLM, LlamaDebugHandler], how: str) -> None:
        llm, handler = traced
        answer = llm.complete(PROMPT) if how == "argument" else llm.complete(prompt=PROMPT)
        ((start, end),) = self._pairs(handler)
        assert start.payload[EventPayload.PROMPT] == PROMPT
        assert end.payload[EventPayload.COMPLETION].text == answer.text

    @pytest.mark.parametrize("how", ["argument", "keyword"])
    def test_a_streamed_completion_is_traced_once(self, traced: tuple[LLM, LlamaDebugHandler], how: str) -> None:
        llm, handler = traced
        stream = llm.stream_complete(PROMPT) if how == "argument" else llm.stream_complete(prompt=PROMPT)
        last = list(stream)[-1]
        ((_, end),) = self._pairs(handler)
        assert end.payload[EventPayload.COMPLETION].text == last.text

    def test_a_chat_is_traced_once(self, traced: tuple[LLM, LlamaDebugHandler]) -> None:
        llm, handler = traced
        answer = llm.chat(CHAT)
        ((start, end),) = self._pairs(handler)
        assert list(start.payload[EventPayload.MESSAGES]) == CHAT
        assert end.payload[EventPayload.RESPONSE].message.content == answer.message.content

    async def test_async_calls_are_traced_once(self, traced: tuple[LLM, LlamaDebugHandler]) -> None:
        llm, handler = traced
        await llm.achat(CHAT)
        await llm.acomplete(PROMPT)
        async for _ in await llm.astream_chat(CHAT):
            pass
        async for _ in await llm.astream_complete(PROMPT):
            pass
        assert len(self._pairs(handler)) == 4

    def test_a_call_without_a_prompt_is_an_error(self, llm: LLM) -> None:
        with pytest.raises((ValueError, TypeError)):
            llm.complete()  # type: ignore[call-arg]  # that is the point

    def test_traces_hold_no_secrets(self, traced: tuple[LLM, LlamaDebugHandler]) -> None:
        llm, handler = traced
        llm.chat(CHAT)
        payloads = [llm.to_payload(), llm.to_dict(), self._pairs(handler)[0][0].payload[EventPayload.SERIALIZED]]
        for payload in payloads:
            names = set(json.loads(json.dumps(payload, default=str)))
            assert not names & set(SECRETS)

    def test_errors_are_traced_and_raised(self, traced: tuple[LLM, LlamaDebugHandler]) -> None:
        llm, handler = traced
        message = ChatMessage(role=MessageRole.USER, content=PROMPT)
        message.blocks = [object()]  # type: ignore[list-item]  # nothing can make a prompt of this
        with pytest.raises(Exception):  # whatever the LLM finds wrong with it
            llm.chat([message])
        ((_, end),) = self._pairs(handler)
        assert EventPayload.EXCEPTION in end.payload

    # -- many at once -------------------------------------------------------------------------------------------

    def test_threads_get_their_own_answers(self, llm: LLM) -> None:
        prompts = [f"Say the number {n}." for n in range(6)]
        alone = [llm.complete(prompt).text for prompt in prompts]
        with ThreadPoolExecutor(3) as pool:
            assert [answer.text for answer in pool.map(llm.complete, prompts)] == alone

    async def test_tasks_get_their_own_answers(self, llm: LLM) -> None:
        prompts = [f"Say the number {n}." for n in range(6)]
        alone = [llm.complete(prompt).text for prompt in prompts]
        together = await asyncio.gather(*(llm.acomplete(prompt) for prompt in prompts))
        assert [answer.text for answer in together] == alone

    async def test_the_event_loop_goes_on_meanwhile(self, llm: LLM) -> None:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.001)
                beats += 1

        heart = asyncio.create_task(beat())
        started = time.perf_counter()
        while time.perf_counter() - started < 0.1:
            await llm.acomplete(PROMPT)
        heart.cancel()
        assert beats > 3
