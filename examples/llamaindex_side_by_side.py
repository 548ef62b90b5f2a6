"""The same model and the same query engine, reading its context each time and remembering it.

python examples/llamaindex_side_by_side.py
"""

from __future__ import annotations

import time

from llama_index.core.query_engine import RetrieverQueryEngine

from llamaindex_nnm import NNMLLM, NNMRetriever, receipts
from nnm_core import NNM
from nnm_core.model.load import LoadedModel

PLACES = ["Lisbon", "Oslo", "Quito", "Nairobi"]


def note(number: int, place: str) -> str:
    """A passage with one fact and some words around it."""
    filler = " ".join(f"Shelf {n} holds folder {n * number}." for n in range(1, 12))
    return f"The archive of office {number} is in {place}. {filler}"


def main(model: str | LoadedModel = "nnm-mini") -> None:
    """Two arms, three questions, one table."""
    with NNM.open(model) as nnm:
        nnm.add([note(number, place) for number, place in enumerate(PLACES, start=1)])
        retriever = NNMRetriever(nnm, 2)
        print(f"{'arm':14}{'seconds':>8}{'read':>6}{'injected':>10}  answer")
        for arm, mode in (("classic", "read"), ("nnm", "inject"), ("nnm, again", "inject")):
            engine = RetrieverQueryEngine.from_args(retriever, llm=NNMLLM(nnm, max_tokens=12, mode=mode))
            for number in (1, 3):
                started = time.perf_counter()
                with receipts() as taken:
                    answer = engine.query(f"Where is the archive of office {number}?")
                took, receipt = time.perf_counter() - started, taken[-1]
                counts = f"{receipt.tokens_read:6}{receipt.tokens_injected:10}"
                print(f"{arm:14}{took:8.2f}{counts}  {str(answer)!r}")


if __name__ == "__main__":
    main()
