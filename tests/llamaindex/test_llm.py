"""The LLM: what it is given, what it answers, what it counts, and that it never blocks or keeps decoding in vain."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from tests.llamaindex.reader import TEXTS, filled, in_a_loop

from llamaindex_nnm import NNMLLM
from nnm_core import NNM, InvalidInputError, MemoryNotFoundError

PROMPT = [
    ChatMessage(role=MessageRole.SYSTEM, content="Be kind."),
    ChatMessage(role=MessageRole.USER, content=f"Known: {TEXTS['falcon']}\n\nWho leads?"),
]


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with filled() as engine:
        yield engine


@pytest.fixture
def llm(nnm: NNM) -> NNMLLM:
    return NNMLLM(nnm, max_tokens=8)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import llamaindex_nnm, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_leased_memory_is_read_once_and_injected_from_then_on(nnm: NNM, llm: NNMLLM) -> None:
    without = llm.chat(PROMPT)
    assert without.raw["nnm"]["memories"] == {}
    nnm.search("Falcon", k=1)
    first, second = llm.chat(PROMPT), llm.chat(PROMPT)
    assert first.raw["nnm"]["memories"] == {"falcon": "read"}
    assert "read, and kept" in first.raw["nnm"]["fallbacks"][0]
    assert second.raw["nnm"]["memories"] == {"falcon": "injected"}
    assert second.raw["nnm"]["tier"] == "exact"
    assert second.raw["usage"]["prompt_tokens_details"]["cached_tokens"] > len(TEXTS["falcon"])
    control = llm.chat(PROMPT, mode="read")
    assert control.raw["nnm"]["tokens_injected"] == 0
    assert first.message.content == second.message.content == control.message.content


def test_the_fast_policy_injects_at_once_and_says_composed(nnm: NNM) -> None:
    nnm.search("Falcon", k=1)
    answer = NNMLLM(nnm, max_tokens=4, policy="fast").chat(PROMPT)
    assert answer.raw["nnm"]["memories"] == {"falcon": "injected"}
    assert answer.raw["nnm"]["tier"] == "composed"


def test_the_composer_is_that_of_the_field_or_of_the_call(nnm: NNM) -> None:
    ids = list(TEXTS)
    moved = NNMLLM(nnm, max_tokens=2, policy="fast", composer="concatenate")
    asked = [ChatMessage(role=MessageRole.USER, content="Who leads?")]
    assert moved.chat(asked, memories=ids).raw["nnm"]["tokens_recomputed"] == 0
    assert moved.chat(asked, memories=ids, composer="link").raw["nnm"]["tokens_recomputed"] > 0
    with pytest.raises(InvalidInputError, match="composer"):
        moved.chat(asked, memories=ids, composer="no such")


def test_the_canonical_order_is_that_of_the_ids(nnm: NNM) -> None:
    ids = sorted(TEXTS, reverse=True)
    asked = [ChatMessage(role=MessageRole.USER, content="Who leads?")]
    given = NNMLLM(nnm, max_tokens=2).chat(asked, memories=ids)
    sorted_ = NNMLLM(nnm, max_tokens=2, order="canonical").chat(asked, memories=ids)
    assert list(given.raw["nnm"]["memories"]) == ids
    assert list(sorted_.raw["nnm"]["memories"]) == sorted(ids)
    with pytest.raises(ValueError, match="order"):
        NNMLLM(nnm, order="alphabetical")


def test_another_scope_sees_no_lease(nnm: NNM, llm: NNMLLM) -> None:
    nnm.search("Falcon", k=1, scope="mine")
    assert llm.chat(PROMPT).raw["nnm"]["memories"] == {}
    assert llm.chat(PROMPT, scope="theirs").raw["nnm"]["memories"] == {}
    assert set(llm.chat(PROMPT, scope="mine").raw["nnm"]["memories"]) == {"falcon"}


def test_memories_by_reference_answer_as_the_engine_does(nnm: NNM, llm: NNMLLM) -> None:
    answer = llm.chat([ChatMessage("Who leads?")], memories=["falcon", "key"])
    expected = nnm.answer("Who leads?", memories=["falcon", "key"], max_tokens=8)
    assert answer.message.content == expected.text
    assert answer.raw["nnm"]["memories"]["falcon"] == "injected"
    assert set(answer.raw["nnm"]["memories"]) == {"falcon", "key"}
    with_history = [*PROMPT, ChatMessage(role="assistant", content="Maria."), ChatMessage("Where is the key?")]
    first, again = (llm.chat(with_history, memories=["key"]) for _ in range(2))
    assert first.raw["nnm"]["memories"]["key"] == "read"
    assert again.raw["nnm"]["memories"]["key"] == "injected"
    assert first.message.content == again.message.content
    with pytest.raises(MemoryNotFoundError):
        llm.chat([ChatMessage("Who?")], memories=["nobody"])


def test_all_eight_ways_to_call_give_the_same_text_and_counts(llm: NNMLLM) -> None:
    prompt = "Who leads Falcon?"
    chat = [ChatMessage(prompt)]

    async def run() -> list:
        results = [await llm.achat(chat), await llm.acomplete(prompt)]
        results.append([r async for r in await llm.astream_chat(chat)])
        results.append([r async for r in await llm.astream_complete(prompt)])
        return results

    achat, acomplete, astream_chat, astream_complete = in_a_loop(run())
    stream_chat, stream_complete = list(llm.stream_chat(chat)), list(llm.stream_complete(prompt))
    for whole, pieces in [(llm.chat(chat), stream_chat), (achat, astream_chat)]:
        assert "".join(piece.delta for piece in pieces) == whole.message.content == pieces[-1].message.content
        assert all(piece.raw is None for piece in pieces[:-1])
        assert whole.additional_kwargs == pieces[-1].additional_kwargs
    for whole, pieces in [(llm.complete(prompt), stream_complete), (acomplete, astream_complete)]:
        assert "".join(piece.delta for piece in pieces) == whole.text == pieces[-1].text
    assert llm.complete(prompt).text == llm.chat(chat).message.content == achat.message.content == acomplete.text
    counts = achat.additional_kwargs
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    assert counts["completion_tokens"] == 8


def test_options_per_call_win_over_fields_and_wrong_ones_are_named(nnm: NNM, llm: NNMLLM) -> None:
    assert llm.chat([ChatMessage("Hi")], max_tokens=2).raw["usage"]["completion_tokens"] == 2
    stop = llm.complete("Hi").text[2:4]
    assert stop not in llm.complete("Hi", stop=[stop]).text
    one = llm.complete("Hi", temperature=2.0, seed=1).text
    assert one == llm.complete("Hi", temperature=2.0, seed=1).text != llm.complete("Hi", temperature=2.0, seed=2).text
    with pytest.raises(InvalidInputError, match="logit_bias"):
        llm.complete("Hi", logit_bias={})
    with pytest.raises(InvalidInputError, match="temperature"):
        llm.stream_chat([ChatMessage("Hi")], temperature=-1.0)


def test_blocks_that_are_not_text_are_refused(llm: NNMLLM) -> None:
    picture = ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), ImageBlock(url="http://x/y.png")])
    with pytest.raises(InvalidInputError, match="ImageBlock"):
        llm.chat([picture])
    texts = ChatMessage(role="user", blocks=[TextBlock(text="One."), TextBlock(text="Two.")])
    assert llm.chat([texts]).message.content == llm.complete("One.\nTwo.").text


def test_metadata_describes_the_model(nnm: NNM, llm: NNMLLM) -> None:
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (nnm.model.context_limit, 8)
    assert metadata.is_chat_model
    assert not metadata.is_function_calling_model
    assert metadata.model_name == nnm.model.name
    assert len(llm.tokenize("four")) == 4
    assert llm.class_name() == llm.to_dict()["class_name"] == "NNMLLM"


def test_copies_share_the_engine_and_pickles_are_refused(nnm: NNM, llm: NNMLLM) -> None:
    assert copy.deepcopy(llm).nnm is nnm
    assert llm.model_copy().nnm is nnm
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(llm)


async def test_the_event_loop_keeps_beating_while_the_model_works(llm: NNMLLM) -> None:
    gaps: list[float] = []

    async def heart() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    beating = asyncio.create_task(heart())
    started = time.perf_counter()
    await asyncio.gather(*(llm.acomplete("x" * 3000, max_tokens=40) for _ in range(3)))
    took = time.perf_counter() - started
    beating.cancel()
    assert took > 0.1
    assert len(gaps) > 5
    assert max(gaps) < max(0.25, took / 4)


async def test_cancelling_a_task_ends_the_decoding(nnm: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _counted_steps(monkeypatch)
    llm = NNMLLM(nnm, max_tokens=4000, stop=["\u0000never"])
    task = asyncio.create_task(llm.acomplete("Go on"))
    while steps[0] < 5:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _at_rest(steps)


async def test_leaving_a_stream_ends_the_decoding(nnm: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _counted_steps(monkeypatch)
    llm = NNMLLM(nnm, max_tokens=4000)
    stream = await llm.astream_complete("Go on")
    async for _ in stream:
        break
    await stream.aclose()
    await _at_rest(steps)
    for _ in llm.stream_complete("Go on"):
        break
    await _at_rest(steps)


def _counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    import nnm_core.injection.generate as generate

    steps = [0]
    forward = generate.forward

    def counted(*args: object) -> object:
        steps[0] += 1
        return forward(*args)

    monkeypatch.setattr(generate, "forward", counted)
    return steps


async def _at_rest(steps: list[int]) -> None:
    await asyncio.sleep(0.1)
    before = steps[0]
    await asyncio.sleep(0.1)
    assert steps[0] == before < 3000


def test_many_threads_get_their_own_answers(nnm: NNM, llm: NNMLLM) -> None:
    from concurrent.futures import ThreadPoolExecutor

    prompts = [f"Question number {n}?" for n in range(12)]
    alone = [llm.complete(prompt).text for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda prompt: llm.complete(prompt).text, prompts)) == alone
