"""A chat engine whose conversation is memory too: turns are kept, injected, and recalled when they are long past.

python examples/llamaindex_chat.py
"""

from __future__ import annotations

from llama_index.core.chat_engine import ContextChatEngine

from llamaindex_nnm import NNMLLM, NNMMemory, NNMRetriever, receipts
from nnm_core import NNM
from nnm_core.model.load import LoadedModel

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The spare key hangs behind the cellar door.",
]
TALK = [
    "My sister Ana lives in Lisbon since last year.",
    "Who leads the Falcon project?",
    "When are the bins collected?",
    "Where does my sister Ana live?",
]


def main(model: str | LoadedModel = "nnm-mini") -> None:
    """Talk, go on after a restart of the chat engine, and forget."""
    with NNM.open(model) as nnm:
        nnm.add(NOTES)
        llm = NNMLLM(nnm, max_tokens=16, scope="ana")
        memory = NNMMemory(nnm, session="ana", scope="ana", recent=4)
        # Turns are memories: the retriever may find them like any other.
        retriever = NNMRetriever(nnm, 1, scope="ana", include_turns=True)
        engine = ContextChatEngine.from_defaults(retriever, llm=llm, memory=memory, system_prompt=nnm.system)
        with receipts() as taken:
            for message in TALK:
                print(f"> {message}\n  {engine.chat(message).response!r} ({taken[-1].tokens_injected} tokens injected)")

        # The history lies in the engine, not in the object.
        again = NNMMemory(nnm, session="ana", scope="ana", recent=4)
        print(f"{len(again.get_all())} turns kept; for the last question this one is recalled:")
        history = again.get(TALK[-1])
        recalled = next(str(message.content) for message in history if message.role == "system")
        print(" ", recalled.splitlines()[1])
        again.reset()
        print(f"{nnm.stats()['memories']} memories after the conversation is forgotten")


if __name__ == "__main__":
    main()
