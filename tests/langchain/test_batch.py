"""A batch's calls are answered together, and each answer, error and callback is what it would be alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from tests.langchain.engines import BINS, FALCON, KEY, open_tiny

from langchain_nnm import NNMLLM, ChatNNM
from nnm_core import NNM, ContextOverflowError

PROMPTS = ["Hello", f"Context: {BINS}\nQuestion: When?", "Who leads the project?", f"{KEY} {FALCON} Where is it?"]
TOO_LONG = "word " * 400


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with open_tiny() as opened:
        opened.add([BINS, FALCON, KEY], ids=["bins", "falcon", "key"])
        opened.search("bins falcon key", k=3)
        yield opened


def batches(nnm: NNM) -> tuple[int, int]:
    use = nnm.stats()["batches"]
    return use["answers"], use["largest_rows"]


async def test_a_batch_decodes_together_what_it_would_answer_alone(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=12)
    alone = [chat.invoke(prompt) for prompt in PROMPTS]
    assert batches(nnm) == (0, 0)
    together = chat.batch(PROMPTS)
    assert batches(nnm) == (4, 4)
    awaited = await chat.abatch(PROMPTS)
    assert batches(nnm) == (8, 4)
    for found in (together, awaited):
        for one, other in zip(found, alone, strict=True):
            assert one.text == other.text
            assert one.response_metadata["finish_reason"] == other.response_metadata["finish_reason"]
            assert one.usage_metadata is not None
            assert one.usage_metadata["output_tokens"] == other.usage_metadata["output_tokens"]  # type: ignore[index]  # it is there
            # The same memories; the first time one is read, and injected from then on.
            assert one.response_metadata["nnm"]["memories"].keys() == other.response_metadata["nnm"]["memories"].keys()
    assert "bins" in together[1].response_metadata["nnm"]["memories"]


def test_a_chain_batches_its_model_and_max_concurrency_says_how_many_decode_together(nnm: NNM) -> None:
    chain = ChatPromptTemplate.from_template("Say: {what}") | ChatNNM(nnm=nnm, max_tokens=6).bind(temperature=0.0)
    values = [{"what": str(number)} for number in range(5)]
    alone = [chain.invoke(value).text for value in values]
    assert [message.text for message in chain.batch(values, {"max_concurrency": 2})] == alone
    assert batches(nnm) == (5, 2)
    assert ChatNNM(nnm=nnm).batch([]) == []


async def test_an_error_stays_with_its_call(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=6)
    alone = [chat.invoke(prompt).text for prompt in PROMPTS[:2]]
    mixed = [PROMPTS[0], TOO_LONG, PROMPTS[1]]
    found = chat.batch(mixed, return_exceptions=True)
    awaited = await chat.abatch(mixed, return_exceptions=True)
    for first, error, last in (found, awaited):
        assert isinstance(error, ContextOverflowError)
        assert [first.text, last.text] == alone
    with pytest.raises(ContextOverflowError):
        chat.batch(mixed)
    with pytest.raises(ContextOverflowError):
        await chat.abatch(mixed)


class Heard(BaseCallbackHandler):
    """What a call's callbacks are told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.told.append(f"start {messages[0][0].content} {kwargs['tags']} {kwargs['metadata'].get('who')}")

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.told.append(f"end {response.generations[0][0].text}")

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told.append(f"error {type(error).__name__}")


def test_each_call_has_its_own_callbacks_tags_metadata_and_scope(nnm: NNM) -> None:
    nnm.search("key", k=3, scope="mine")
    nnm.leases.drop([])
    chat = ChatNNM(nnm=nnm, max_tokens=4, scope="nobody")
    heard = [Heard(), Heard()]
    prompt = f"{KEY} Where?"
    configs: list[Any] = [
        {"callbacks": [heard[0]], "tags": ["a"], "metadata": {"who": "x", "nnm_scope": "mine"}},
        {"callbacks": [heard[1]], "tags": ["b"], "metadata": {"who": "y"}},
    ]
    first, second = chat.batch([prompt, prompt], configs)
    assert heard[0].told == [f"start {prompt} ['a'] x", f"end {first.text}"]
    assert heard[1].told == [f"start {prompt} ['b'] y", f"end {second.text}"]
    assert list(first.response_metadata["nnm"]["memories"]) == ["key"]
    assert second.response_metadata["nnm"]["memories"] == {}


def test_cached_and_streamed_calls_are_not_waited_for(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=6, cache=InMemoryCache())
    known = chat.invoke(PROMPTS[0])
    found = chat.batch(PROMPTS[:3])
    assert found[0].text == known.text
    assert batches(nnm) == (2, 2)
    assert [message.text for message in chat.batch(PROMPTS[:3])] == [message.text for message in found]
    assert batches(nnm) == (2, 2)


def test_a_callback_that_asks_the_same_engine_does_not_hold_up_the_batch(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=4)
    other = ChatNNM(nnm=nnm, max_tokens=4)
    inner: list[str] = []

    class Asks(Heard):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            if messages[0][0].content == "outer":
                inner.append(other.invoke([HumanMessage("inner")], {"callbacks": []}).text)

    alone = [chat.invoke("outer").text, other.invoke("inner").text]
    done: list[Any] = []
    asking = threading.Thread(
        target=lambda: done.extend(chat.batch(["outer"] * 3, {"callbacks": [Asks()]})), daemon=True
    )
    asking.start()
    asking.join(60)
    assert [message.text for message in done] == [alone[0]] * 3
    assert set(inner) == {alone[1]}


async def test_a_cancelled_batch_stops_decoding(nnm: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    steps = 0
    one_pass = vars(__import__("nnm_core.together", fromlist=["_pass"]))["_pass"]

    def counted(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait(0.02)
        return one_pass(*args)

    monkeypatch.setattr("nnm_core.together._pass", counted)
    task = asyncio.ensure_future(ChatNNM(nnm=nnm, max_tokens=200).abatch(["Hello", "you there"]))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    seen = steps
    await asyncio.sleep(0.2)
    assert steps == seen < 100


async def test_the_text_model_decodes_its_prompts_together(nnm: NNM) -> None:
    llm = NNMLLM(nnm=nnm, max_tokens=8)
    alone = [llm.invoke(prompt) for prompt in PROMPTS]
    assert llm.batch(PROMPTS) == alone
    assert batches(nnm) == (4, 4)
    assert await llm.abatch(PROMPTS) == alone
    assert batches(nnm) == (8, 4)


async def test_the_text_model_keeps_the_scopes_of_a_batch_apart(nnm: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    scopes: list[tuple[str, str]] = []
    stream = nnm.stream

    def noted(prompt: Any, **options: Any) -> Any:
        scopes.append((prompt[0].content, options["scope"]))
        return stream(prompt, **options)

    monkeypatch.setattr(nnm, "stream", noted)
    llm = NNMLLM(nnm=nnm, max_tokens=2)
    configs: list[Any] = [{"metadata": {"nnm_scope": "a"}}, {"configurable": {"nnm_scope": "b"}}]
    llm.batch(["1", "2"], configs)
    await llm.abatch(["3", "4"], configs)
    assert sorted(scopes) == [("1", "a"), ("2", "b"), ("3", "a"), ("4", "b")]
