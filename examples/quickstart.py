"""Memory in ten lines: read texts once, answer from their states, look at the receipt.

python examples/quickstart.py
"""

from __future__ import annotations

from nnm_core import NNM, Message

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The spare key hangs behind the cellar door.",
]


def main() -> None:
    """Add, search, answer three ways, chat, forget."""
    with NNM.open("nnm-mini") as nnm:  # path="memory" would keep it on disk
        nnm.add(
            NOTES, ids=["bins", "falcon", "key"], metadatas=[{"topic": "home"}, {"topic": "work"}, {"topic": "home"}]
        )

        for hit in nnm.search("Who leads the Falcon project?", k=2):
            print(f"{hit.score:.3f}  {hit.memory.id:8} {hit.memory.text}")

        question = "Who leads the Falcon project?"
        for mode in ("inject", "read", "bare"):
            answer = nnm.answer(question, k=1, mode=mode)
            receipt = answer.receipt
            print(
                f"{mode:7} {answer.text!r:24} tier={receipt.tier} injected={receipt.tokens_injected} "
                f"read={receipt.tokens_read} first token after {1000 * receipt.seconds_to_first_token:.0f} ms"
            )

        # A chat prompt of your own: the text of memories that were just recalled is replaced by their states.
        nnm.search("Where is the spare key?", k=1, filter={"topic": "home"})
        prompt = [Message("user", f"Context:\n{NOTES[2]}\n\nQuestion: Where is the spare key?")]
        for turn in ("first use", "second use"):
            receipt = nnm.answer(prompt).receipt
            print(f"{turn}: {dict(receipt.memories)} {receipt.fallbacks}")

        print("forgotten:", nnm.forget("falcon"), "left:", nnm.stats()["memories"])


if __name__ == "__main__":
    main()
