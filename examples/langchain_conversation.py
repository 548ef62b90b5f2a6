"""A conversation with history: each turn recalls for itself, and what earlier turns have read is injected.

python examples/langchain_conversation.py
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from langchain_nnm import ChatNNM, NNMRetriever
from nnm_core import NNM

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The spare key hangs behind the cellar door.",
]
PROMPT = ChatPromptTemplate.from_messages(
    [MessagesPlaceholder("history"), ("user", "Context:\n{context}\n\nQuestion: {question}")]
)


def main(model: str = "nnm-mini") -> None:
    """Three questions in one conversation; its leases are its own (`scope`)."""
    history: list[BaseMessage] = []
    with NNM.open(model) as nnm:
        nnm.add(NOTES)
        retriever = NNMRetriever(nnm=nnm, k=1, scope="conversation 1")
        chat = ChatNNM(nnm=nnm, max_tokens=24, scope="conversation 1")
        for question in ("When are the bins collected?", "Who leads the Falcon project?", "Where is the spare key?"):
            context = "\n\n".join(document.page_content for document in retriever.invoke(question))
            turn = PROMPT.invoke({"history": history, "context": context, "question": question}).to_messages()
            answer = chat.invoke(turn)
            print(f"{question} {answer.text!r} ({read_and_injected(answer)})")
            history = [*turn, answer]
        print(sum(isinstance(message, HumanMessage) for message in history), "turns")


def read_and_injected(answer: AIMessage) -> str:
    """Tokens of the prompt that were read and injected."""
    receipt: dict[str, Any] = answer.response_metadata["nnm"]
    return f"{receipt['tokens_injected']} tokens injected, {receipt['tokens_read']} read"


if __name__ == "__main__":
    main()
