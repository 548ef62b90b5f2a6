"""Many answers at once on one model: none mixed, nothing left behind, the event loop free, cancelled means stopped."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from langchain_core.runnables import RunnableConfig
from tests.langchain.engines import open_tiny

from langchain_nnm import ChatNNM, NNMRetriever
from nnm_core import NNM

ANSWERS = 32


@pytest.fixture
def rooms() -> Iterator[NNM]:
    with open_tiny() as nnm:
        nnm.add(
            [f"Room {n} is kept by person {n * 37}." for n in range(ANSWERS)], ids=[f"r{n}" for n in range(ANSWERS)]
        )
        yield nnm


def prompt_of(nnm: NNM, number: int) -> str:
    found = NNMRetriever(nnm=nnm, k=1, scope=f"s{number}").invoke(f"Who keeps room {number}?")
    assert [document.id for document in found] == [f"r{number}"]
    return f"{found[0].page_content}\n\nWho keeps room {number}?"


async def stream(chat: ChatNNM, prompt: str, scope: str) -> tuple[str, Any]:
    pieces = [chunk async for chunk in chat.astream(prompt, scope=scope)]
    return "".join(piece.text for piece in pieces), pieces[-1].response_metadata["nnm"]


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


async def test_32_streams_at_once_are_all_right(rooms: NNM) -> None:
    prompts = [prompt_of(rooms, number) for number in range(ANSWERS)]
    chat = ChatNNM(nnm=rooms, max_tokens=12)
    alone = [chat.invoke(prompt, mode="read").text for prompt in prompts]
    assert len(set(alone)) > ANSWERS // 2  # else nobody would see them mixed
    tensors = []
    for turn in range(3):
        results = await asyncio.gather(*(stream(chat, prompt, f"s{n}") for n, prompt in enumerate(prompts)))
        assert [text for text, _ in results] == alone
        for number, (_, receipt) in enumerate(results):
            assert receipt["memories"] == {f"r{number}": "read" if turn == 0 else "injected"}
        tensors.append(live_tensors())
    assert tensors[1] == tensors[2]


def test_a_batch_in_threads_is_all_right(rooms: NNM) -> None:
    prompts = [prompt_of(rooms, number) for number in range(ANSWERS)]
    chat = ChatNNM(nnm=rooms, max_tokens=8)
    alone = [chat.invoke(prompt, mode="read").text for prompt in prompts]
    config = RunnableConfig(max_concurrency=8)
    assert [message.text for message in chat.batch(prompts, config)] == alone


async def test_adding_and_deleting_while_answers_stream(rooms: NNM) -> None:
    prompts = [prompt_of(rooms, number) for number in range(8)]
    chat = ChatNNM(nnm=rooms, max_tokens=12)
    alone = [chat.invoke(prompt, mode="read").text for prompt in prompts]

    def change() -> None:
        for number in range(10):
            rooms.add(f"Something new, number {number}.", ids=f"new{number}")
            rooms.delete(f"r{20 + number}")

    changes = asyncio.create_task(asyncio.to_thread(change))
    results = await asyncio.gather(*(stream(chat, prompt, f"s{n}") for n, prompt in enumerate(prompts)))
    await changes
    assert [text for text, _ in results] == alone
    assert rooms.stats()["memories"] == ANSWERS


async def beats(work: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Pauses of a task that wants to run every millisecond while `work` goes on: wall and own CPU seconds of each."""
    walls, cpus = [], []
    done = asyncio.ensure_future(work())
    while not done.done():
        wall, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.thread_time() - cpu)
    await done
    return walls, cpus


async def test_the_loop_stays_free(rooms: NNM) -> None:
    chat = ChatNNM(nnm=rooms, max_tokens=24)
    retriever = NNMRetriever(nnm=rooms, k=2)

    async def answers() -> None:
        await asyncio.gather(*(retriever.ainvoke(f"Who keeps room {n}?") for n in range(8)))
        await asyncio.gather(*(stream(chat, f"Question {n}", "") for n in range(8)))
        await asyncio.gather(*(chat.ainvoke(f"Question {n}") for n in range(8)))

    await answers()  # imports and first-time work are not what is asked about
    walls, cpus = await beats(answers)
    idle, _ = await beats(lambda: asyncio.sleep(0.2))
    assert len(walls) > 20
    # What our code itself runs on the loop between two beats: CPU time, so that a busy machine does not count.
    assert max(cpus) < 0.05
    # And the task gets its turns: in the middle not later than on an idle loop, give or take a block.
    assert sorted(walls)[len(walls) // 2] < sorted(idle)[len(idle) // 2] + 0.05


async def test_no_step_of_the_engine_runs_on_the_loop(rooms: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    forward = rooms.model.hf.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return forward(*args, **kwargs)

    monkeypatch.setattr(rooms.model.hf, "forward", spy)
    chat = ChatNNM(nnm=rooms, max_tokens=3)
    await chat.ainvoke("Hello")
    await stream(chat, "Hello", "")
    await chat.abatch(["Hello", "you"])
    await NNMRetriever(nnm=rooms).ainvoke("Who keeps room 3?")
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("way", ["astream", "ainvoke"])
async def test_cancelling_stops_the_decoding(rooms: NNM, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    started, closed = threading.Event(), threading.Event()
    steps = 0
    original = rooms.stream

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        def run() -> Iterator[Any]:
            nonlocal steps
            try:
                for chunk in original(*args, **kwargs):
                    steps += 1
                    started.set()
                    yield chunk
            finally:
                closed.set()

        return run()

    monkeypatch.setattr(rooms, "stream", counted)
    chat = ChatNNM(nnm=rooms, max_tokens=400)
    task = asyncio.ensure_future(stream(chat, "Hello", "") if way == "astream" else chat.ainvoke("Hello"))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(closed.wait, 10)
    assert steps < 400


def test_leaving_a_stream_early_stops_the_decoding(rooms: NNM) -> None:
    chat = ChatNNM(nnm=rooms, max_tokens=400)
    chunks = chat.stream("Hello")
    next(chunks)
    before = live_tensors()
    chunks.close()  # type: ignore[attr-defined]  # stream() is a generator
    assert live_tensors() < before


async def test_an_error_inside_reaches_the_caller_and_harms_no_other(rooms: NNM) -> None:
    chat = ChatNNM(nnm=rooms, max_tokens=4)
    expected = chat.invoke("Hello").text
    good, bad, again = await asyncio.gather(
        chat.ainvoke("Hello"), chat.ainvoke("x" * 2000), chat.ainvoke("Hello"), return_exceptions=True
    )
    assert "context of 512" in str(bad)
    assert good.text == again.text == expected
