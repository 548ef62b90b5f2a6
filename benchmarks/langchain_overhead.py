"""What does the LangChain adapter cost on top of the engine?

    python benchmarks/langchain_overhead.py --json out/langchain_overhead.json

A prompt of about 1,000 tokens holds four memories that were recalled just before, and 16 tokens are decoded. Arms, in
turns, in one process; each prompt goes through the engine and through the chat model:

engine     NNM.answer(messages)
thread     the same in a worker thread, which allocates anew what the main thread has at hand: compare astream with it
invoke     ChatNNM.invoke(messages)
stream     ChatNNM.stream(messages)
astream    ChatNNM.astream(messages), on an event loop
prompt     ChatPromptTemplate | ChatNNM, invoked

once where the prompt is read and once where its memories are injected, where there is least to hide behind. On a
machine that does other things too, `--clock cpu` counts the processor's time in place of the wall's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from rich.console import Console
from rich.table import Table

from langchain_nnm import ChatNNM
from nnm_core import NNM, Message
from nnm_core.evaluation.benchmark import environment, parser, side_by_side, spread, texts_of_length
from nnm_core.evaluation.report import seconds, write_json

MEMORIES = 4
QUESTION = "What are these texts about?"
MODES = {"read": "read", "injected": "inject"}


def main() -> None:
    """Measure, print, save."""
    options = parser(str(__doc__).splitlines()[0], repeats=9)
    options.add_argument("--max-tokens", type=int, default=16, help="tokens that are decoded")
    options.add_argument("--tokens", type=int, default=240, help="tokens of each of the four memories")
    options.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="which seconds are counted")
    arguments = options.parse_args()
    with NNM.open(arguments.model, device=arguments.device) as engine:
        with asyncio.Runner() as loop:  # one loop, with the same worker threads all the time, as a server has it
            results = {name: measure(engine, mode, arguments, loop) for name, mode in MODES.items()}
        config = environment(engine.model) | {
            "repeats": arguments.repeats,
            "max_tokens": arguments.max_tokens,
            "clock": arguments.clock,
            "prompt_tokens": prompt_tokens(engine, arguments.tokens),
        }
    report = {
        "arms": {
            name: {"seconds": {mode: spread(row[name]) for mode, row in results.items()}} for name in results["read"]
        },
        "overhead": {mode: overheads(row) for mode, row in results.items()},
        "config": config,
    }
    write_json(arguments.json, report)
    Console(file=sys.stderr if str(arguments.json) == "-" else sys.stdout).print(table(report))


def measure(engine: NNM, mode: Any, arguments: Any, loop: asyncio.Runner) -> dict[str, list[float]]:
    """Seconds of each arm, `repeats` times, on the same prompt."""
    text = prompt(engine, arguments.tokens)
    chat = ChatNNM(nnm=engine, max_tokens=arguments.max_tokens, mode=mode)
    chain = ChatPromptTemplate.from_messages([("user", "{text}")]) | chat
    asked, human = [Message("user", text)], [HumanMessage(text)]

    async def consume() -> None:
        async for _ in chat.astream(human):
            pass

    calls: dict[str, Callable[[], Any]] = {
        "engine": lambda: engine.answer(asked, max_tokens=arguments.max_tokens, mode=mode),
        "thread": lambda: loop.run(asyncio.to_thread(calls["engine"])),
        "invoke": lambda: chat.invoke(human),
        "stream": lambda: list(chat.stream(human)),
        "astream": lambda: loop.run(consume()),
        "prompt": lambda: chain.invoke({"text": text}),
    }
    for call in calls.values():  # reads the prompt, which is injected from then on, and warms everything up
        call()
    check(engine, asked, mode)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    return side_by_side({name: timed(call, clock) for name, call in calls.items()}, arguments.repeats)


def timed(call: Callable[[], Any], clock: Callable[[], float]) -> Callable[[int], float]:
    """A function that measures a call."""

    def measured(_: int) -> float:
        started = clock()
        call()
        return clock() - started

    return measured


def prompt(engine: NNM, tokens: int) -> str:
    """Four memories that were just recalled, and a question."""
    texts = texts_of_length(engine.model, tokens, MEMORIES)
    memories = engine.add(texts)
    engine.leases.take(memories)
    return "\n\n".join([*(memory.text for memory in memories), QUESTION])


def prompt_tokens(engine: NNM, tokens: int) -> int:
    """Tokens of the whole prompt."""
    receipt = engine.answer([Message("user", prompt(engine, tokens))], max_tokens=1, mode="read").receipt
    return receipt.tokens_read


def check(engine: NNM, asked: list[Message], mode: Any) -> None:
    """Fail if the arm does not do what it is named after."""
    receipt = engine.answer(asked, max_tokens=1, mode=mode).receipt
    wanted = "injected" if mode == "inject" else "read"
    if list(receipt.memories.values()) != [wanted] * MEMORIES:
        raise RuntimeError(f"{mode}: the receipt says {receipt}")


def overheads(row: Mapping[str, list[float]]) -> dict[str, float]:
    """For each arm its median extra time over the engine's in the same kind of thread, turn by turn, as a share."""
    control = {name: "thread" if name == "astream" else "engine" for name in row if name != "engine"}
    return {
        name: statistics.median(mine / engine - 1 for mine, engine in zip(row[name], row[other], strict=True))
        for name, other in control.items()
    }


def table(report: Mapping[str, Any]) -> Table:
    """One row an arm."""
    config = report["config"]
    shown = Table(title=f"{config['prompt_tokens']} prompt tokens, {config['model']} on {config['device']}, medians")
    for name in ("", *MODES, *(f"over the engine, {mode}" for mode in MODES)):
        shown.add_column(name, justify="left" if not name else "right")
    for name, arm in report["arms"].items():
        times = [seconds(arm["seconds"][mode]["median"]) for mode in MODES]
        extra = [f"{100 * report['overhead'][mode][name]:+.1f} %" if name != "engine" else "" for mode in MODES]
        shown.add_row(name, *times, *extra)
    return shown


if __name__ == "__main__":
    main()
