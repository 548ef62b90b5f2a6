"""What LlamaIndex adds to a question: the same recall and the same answer, asked of the engine and through LlamaIndex.

    python benchmarks/llamaindex_overhead.py --json overhead.json

The answers are one token long, so that what is around the model stands out. The arms take turns, and each question is
asked once before it is timed, so that every arm injects. Added milliseconds are medians of the differences within one
turn. Run it on a quiet machine: the JSON notes the load that it was measured under.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import TextNode
from rich.console import Console
from rich.table import Table

from llamaindex_nnm import NNMLLM, NNMEmbedding, NNMQueryEngine, NNMRetriever, NNMVectorStore
from nnm_core import NNM
from nnm_core.demo.dataset import passages, questions

# What each arm is compared with: the engine doing the same.
BASE = {"recall": "engine: search", "ask": "engine: answer", "add": "engine: add"}


def main() -> None:
    """Run and print."""
    options = _options()
    texts = [passage.text for passage in passages()][: options.texts]
    asked = [question.question for question in questions()][: options.questions]
    with NNM.open(options.model) as nnm:
        seconds = _timed(_adding(texts), 3, lambda: NNM.open(nnm.model))
        nnm.add(texts)
        for group in (_recalls(nnm), _answers(nnm)):
            seconds |= _turns(group, asked)
        config = {
            "model": nnm.model.name,
            "texts": len(texts),
            "questions": len(asked),
            "load": os.getloadavg()[0],
            "cores": os.cpu_count(),
        }
    arms = {name: {"median_ms": 1000 * statistics.median(times)} for name, times in seconds.items()}
    for name, times in seconds.items():
        base = seconds[BASE[name.split(":")[0]] if not name.startswith("engine") else name]
        added = statistics.median(one - other for one, other in zip(times, base, strict=True))
        arms[name]["added_ms"] = 1000 * added
    _print(arms, config)
    if options.json:
        options.json.write_text(json.dumps({"config": config, "arms": arms}, indent=2))


def _recalls(nnm: NNM) -> dict[str, Callable[[str], Any]]:
    retriever = NNMRetriever(nnm, 2)
    index = VectorStoreIndex.from_vector_store(NNMVectorStore(nnm), embed_model=NNMEmbedding(nnm))
    of_index = index.as_retriever(similarity_top_k=2)
    return {
        "engine: search": lambda question: nnm.search(question, 2),
        "recall: NNMRetriever": retriever.retrieve,
        "recall: NNMRetriever, async": lambda question: asyncio.run(retriever.aretrieve(question)),
        "recall: VectorStoreIndex": of_index.retrieve,
    }


def _answers(nnm: NNM) -> dict[str, Callable[[str], Any]]:
    llm = NNMLLM(nnm, max_tokens=1)
    engine = NNMQueryEngine.from_nnm(nnm, 2, llm=llm)

    def recalled(question: str) -> Any:
        ids = [hit.memory.id for hit in nnm.search(question, 2)]
        return llm.chat([ChatMessage(question)], memories=ids)

    return {
        "engine: answer": lambda question: nnm.answer(question, 2, max_tokens=1),
        "ask: search + NNMLLM.chat": recalled,
        "ask: NNMQueryEngine": engine.query,
        "ask: NNMQueryEngine, async": lambda question: asyncio.run(engine.aquery(question)),
    }


def _adding(texts: list[str]) -> dict[str, Callable[[NNM], Any]]:
    def index(nnm: NNM) -> None:
        storage = StorageContext.from_defaults(vector_store=NNMVectorStore(nnm))
        VectorStoreIndex(
            [TextNode(text=text) for text in texts], storage_context=storage, embed_model=NNMEmbedding(nnm)
        )

    return {"engine: add": lambda nnm: nnm.add(texts), "add: VectorStoreIndex": index}


def _turns(arms: dict[str, Callable[[str], Any]], asked: list[str]) -> dict[str, list[float]]:
    """Seconds of each arm for each question; the first round is for warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for question in asked:
        for run in arms.values():
            run(question)
        for name, run in arms.items():
            started = time.perf_counter()
            run(question)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _timed(arms: dict[str, Callable[[NNM], Any]], rounds: int, fresh: Callable[[], NNM]) -> dict[str, list[float]]:
    """Seconds of each arm on a fresh engine, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            with fresh() as nnm:
                started = time.perf_counter()
                run(nnm)
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _print(arms: dict[str, dict[str, float]], config: dict[str, Any]) -> None:
    title = f"{config['model']}, {config['questions']} questions, load {config['load']:.1f} on {config['cores']} cores"
    table = Table("arm", "median ms", "added ms", title=title)
    for name, values in arms.items():
        table.add_row(name, f"{values['median_ms']:.1f}", f"{values['added_ms']:+.2f}")
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="nnm-mini")
    parser.add_argument("--texts", type=int, default=16, help="how many passages are added")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
