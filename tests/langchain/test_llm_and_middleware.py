"""The text model for old chains, and the middleware for agents."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from tests.langchain.engines import FALCON, open_tiny

from langchain_nnm import NNMLLM, ChatNNM, NNMMiddleware, NNMRetriever
from nnm_core import NNM, MemoryNotFoundError, Message

PROMPT = f"{FALCON}\n\nWho leads?"


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.texts.append(token)


class AsyncTokens(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.texts: list[str] = []

    async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.texts.append(token)


# -- the text model -----------------------------------------------------------------------------------------------


async def test_every_way_of_completing_gives_the_same(nnm: NNM) -> None:
    llm = NNMLLM(nnm=nnm, max_tokens=6)
    expected = nnm.answer([Message("user", PROMPT)], max_tokens=6).text
    assert llm.invoke(PROMPT) == expected
    assert "".join(llm.stream(PROMPT)) == expected
    assert llm.batch([PROMPT, PROMPT]) == [expected] * 2
    assert await llm.ainvoke(PROMPT) == expected
    assert "".join([piece async for piece in llm.astream(PROMPT)]) == expected


def test_a_text_model_injects_what_was_recalled(nnm: NNM) -> None:
    NNMRetriever(nnm=nnm, k=1).invoke("Falcon")
    llm = NNMLLM(nnm=nnm, max_tokens=2, policy="fast")
    info = list(llm._stream(PROMPT))[-1].generation_info
    assert info is not None
    assert info["nnm"]["memories"] == {"falcon": "injected"}


def test_the_cache_of_a_text_model_knows_the_options_of_a_call(nnm: NNM) -> None:
    cache = InMemoryCache()
    llm = NNMLLM(nnm=nnm, max_tokens=2, cache=cache)
    for options in ({}, {}, {"max_tokens": 4}, {"max_tokens": 4}, {"stop": ["x"]}):
        llm.invoke("Who leads?", **options)
    assert len(cache._cache) == 3
    llm.invoke("Who leads?", memories=["falcon"])
    assert len(cache._cache) == 3
    with pytest.raises(MemoryNotFoundError):
        llm.invoke("Who leads?", memories=["nobody"])


async def test_callbacks_get_every_token_once(nnm: NNM) -> None:
    for model in (NNMLLM(nnm=nnm, max_tokens=6), ChatNNM(nnm=nnm, max_tokens=6)):
        tokens = Tokens()
        streamed = list(model.stream("Hello", config={"callbacks": [tokens]}))
        whole = "".join(piece if isinstance(piece, str) else piece.text for piece in streamed)
        assert "".join(tokens.texts) == whole
        later = AsyncTokens()
        async for _ in model.astream("Hello", config={"callbacks": [later]}):
            pass
        assert "".join(later.texts) == whole


# -- the middleware -----------------------------------------------------------------------------------------------


def last(result: dict[str, Any]) -> AIMessage:
    message = result["messages"][-1]
    assert isinstance(message, AIMessage)
    return message


def test_an_agent_gets_memories_by_reference(nnm: NNM) -> None:
    agent = create_agent(ChatNNM(nnm=nnm, max_tokens=4), [], middleware=[NNMMiddleware(nnm, k=1)])
    result = agent.invoke({"messages": [HumanMessage("Who leads Falcon?")]})
    assert last(result).response_metadata["nnm"]["memories"] == {"falcon": "injected"}
    assert last(result).text == nnm.answer("Who leads Falcon?", memories=["falcon"], max_tokens=4).text
    assert all(FALCON not in message.text for message in result["messages"])


async def test_an_agent_on_an_event_loop(nnm: NNM) -> None:
    agent = create_agent(ChatNNM(nnm=nnm, max_tokens=4), [], middleware=[NNMMiddleware(nnm, k=1)])
    result = await agent.ainvoke({"messages": [HumanMessage("Who leads Falcon?")]})
    assert last(result).response_metadata["nnm"]["memories"] == {"falcon": "injected"}


def test_another_model_gets_the_text(nnm: NNM) -> None:
    seen: list[Any] = []

    class Other(FakeListChatModel):
        def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            seen.extend(messages)
            return "yes"

    with open_tiny() as elsewhere:
        for model in (Other(responses=["yes"]), ChatNNM(nnm=elsewhere, max_tokens=1)):
            agent = create_agent(model, [], system_prompt="Be kind.", middleware=[NNMMiddleware(nnm, k=1)])
            agent.invoke({"messages": [HumanMessage("Who leads Falcon?")]})
    assert seen[0].text == f"Be kind.\n\nContext:\n{FALCON}"


def test_without_a_question_or_a_hit_nothing_is_added(nnm: NNM) -> None:
    agent = create_agent(ChatNNM(nnm=nnm, max_tokens=1), [], middleware=[NNMMiddleware(nnm, filter={"n": 99})])
    for messages in ([HumanMessage("Who leads Falcon?")], [HumanMessage(" ")]):
        assert last(agent.invoke({"messages": messages})).response_metadata["nnm"]["memories"] == {}
