"""Chat prompts with memories: in place of their text, in front of the question, strict, and on an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InvalidInputError, MemoryNotFoundError, MemoryNotInjectedError, Message
from nnm_core.aio import iterate
from nnm_core.chat import chat_prompt
from nnm_core.recall.leases import LeaseBook

BINS, FALCON = "The bins are collected on Tuesday.", "Maria leads the Falcon project."


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with NNM.open(tiny_reader(), system=None) as opened:
        opened.add([BINS, FALCON], ids=["bins", "falcon"])
        yield opened


def test_given_memories_stand_before_the_last_question(nnm: NNM) -> None:
    given = nnm.get(["falcon", "bins"])
    turns = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Who leads?")]
    prompt = chat_prompt(turns, LeaseBook(), given=given)
    assert [turn.role for turn in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[-1].parts == ("Context:\n", given[0], "\n\n", given[1], "\n\n", "Question: ", "Who leads?")
    assert prompt.memories == tuple(given)


def test_given_memories_are_found_where_their_text_stands(nnm: NNM) -> None:
    given = nnm.get(["falcon", "bins"])
    prompt = chat_prompt([Message("user", f"{FALCON}\n\nWho leads?")], LeaseBook(), given=given)
    assert prompt.messages[0].parts[:3] == ("Context:\n", given[1], "\n\n")
    assert prompt.messages[0].parts[4] == given[0]
    only = chat_prompt([Message("system", FALCON)], LeaseBook(), given=given[1:])
    assert [turn.role for turn in only.messages] == ["system", "user"]


def test_a_chat_with_given_memories_is_nnms_own_prompt(nnm: NNM) -> None:
    own = nnm.answer("Who leads?", memories=["falcon"], max_tokens=6)
    chat = nnm.answer([Message("user", "Who leads?")], memories=["falcon"], max_tokens=6)
    assert chat.token_ids == own.token_ids
    assert chat.receipt.memories == {"falcon": "injected"}
    assert [hit.memory.id for hit in chat.hits] == ["falcon"]


def test_a_question_with_given_memories_gets_the_engines_system_turn_unless_it_has_one(nnm: NNM) -> None:
    with NNM.open(nnm.model, namespace="system", system="Be brief.") as brief:
        brief.add(FALCON, ids="falcon")
        own = brief.answer("Who leads?", memories=["falcon"], max_tokens=6)
        chat = brief.answer([Message("user", "Who leads?")], memories=["falcon"], max_tokens=6)
        assert chat.token_ids == own.token_ids
        assert chat.receipt.memories == {"falcon": "injected"}
        asked = [Message("system", "Be kind."), Message("user", "Who leads?")]
        prompt = chat_prompt(asked, brief.leases, given=brief.get("falcon"), system="Be brief.")
        assert [turn.role for turn in prompt.messages] == ["system", "user"]
        assert prompt.messages[0].parts == ("Be kind.",)


def test_references_are_found_but_take_no_lease(nnm: NNM) -> None:
    prompt = [Message("user", f"{FALCON}\n\nWho leads?")]
    assert nnm.answer(prompt, references=nnm.get(["falcon"]), max_tokens=1).receipt.memories == {"falcon": "read"}
    assert nnm.answer(prompt, references=nnm.get(["bins"]), max_tokens=1).receipt.memories == {}
    with NNM.open(tiny_reader(), namespace="other", system=None) as other:
        foreign = other.add([FALCON], ids=["falcon"])
        assert nnm.answer(prompt, references=foreign, max_tokens=1).receipt.memories == {}
        with pytest.raises(MemoryNotFoundError):
            nnm.answer(prompt, memories=foreign, max_tokens=1)


def test_missing_ids_can_be_skipped(nnm: NNM) -> None:
    assert [memory.id for memory in nnm.get(["nobody", "bins"], missing="skip")] == ["bins"]
    with pytest.raises(InvalidInputError, match="missing"):
        nnm.get(["bins"], missing="ignore")  # type: ignore[arg-type]


def test_strict_raises_when_none_of_the_recalled_memories_is_in_the_prompt(nnm: NNM) -> None:
    nnm.search("Falcon", k=1)
    with pytest.raises(MemoryNotInjectedError, match="falcon"):
        nnm.answer([Message("user", FALCON.upper())], strict=True, max_tokens=1)
    # The lease was reported once; a prompt that has nothing to do with it goes on.
    nnm.answer([Message("user", "Hello")], strict=True, max_tokens=1)
    nnm.search("Falcon", k=1)
    answer = nnm.answer([Message("user", f"{FALCON} Who?")], strict=True, max_tokens=1)
    assert answer.receipt.memories == {"falcon": "read"}  # read once to be kept: strict allows it


def test_strict_raises_when_a_state_cannot_be_used(nnm: NNM) -> None:
    nnm.answer("Who?", memories=["falcon"], strict=True, max_tokens=1)
    with pytest.raises(MemoryNotInjectedError, match="mode='read'"):
        nnm.answer("Who?", memories=["falcon"], strict=True, mode="read", max_tokens=1)


async def test_steps_run_in_threads_and_stopping_closes_the_generator() -> None:
    threads: set[int] = set()
    closed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count() -> Iterator[int]:
        try:
            for number in range(1000):
                threads.add(threading.get_ident())
                yield number
        finally:
            loop.call_soon_threadsafe(closed.set)

    async def consume() -> None:
        async for number in iterate(count):
            seen.append(number)

    seen: list[int] = []
    task = asyncio.create_task(consume())
    while len(seen) < 3:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 5)
    assert seen == list(range(len(seen)))
    assert len(seen) < 1000
    assert threading.get_ident() not in threads


async def test_errors_of_a_step_reach_the_consumer() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        assert [item async for item in iterate(fail)] == [1]


def test_a_formatted_prompt_is_taken_as_it_stands(nnm: NNM) -> None:
    text = f"<|im_start|>user\n{FALCON}\n\nWho leads?<|im_end|>\n<|im_start|>assistant\n"
    chat = nnm.answer([Message("user", f"{FALCON}\n\nWho leads?")], max_tokens=6)
    formatted = nnm.answer([Message("prompt", text)], max_tokens=6)
    assert formatted.token_ids == chat.token_ids
    assert formatted.receipt.tokens_read + formatted.receipt.tokens_injected == chat.receipt.tokens_read
    nnm.search("Falcon", k=1)
    injected = [nnm.answer([Message("prompt", text)], max_tokens=6) for _ in range(2)][1]
    assert injected.receipt.memories == {"falcon": "injected"}
    assert injected.token_ids == nnm.answer([Message("prompt", text)], mode="read", max_tokens=6).token_ids
    for wrong in ([Message("prompt", "")], [Message("prompt", "One"), Message("user", "two")]):
        with pytest.raises(InvalidInputError, match=r"empty|only message"):
            nnm.answer(wrong, max_tokens=1)
    with pytest.raises(InvalidInputError, match="only message"):
        nnm.answer([Message("prompt", "Who?")], memories=["bins"], max_tokens=1)
