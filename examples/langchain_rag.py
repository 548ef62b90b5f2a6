"""Swap retriever and model of a chain: what is found is injected as states and not read again.

python examples/langchain_rag.py
"""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from langchain_nnm import ChatNNM, NNMRetriever
from nnm_core import NNM

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The spare key hangs behind the cellar door.",
]
PROMPT = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")


def join(documents: list[Document]) -> str:
    """The text of the documents, one below the other."""
    return "\n\n".join(document.page_content for document in documents)


def rag(nnm: NNM, **options: Any) -> Runnable[str, Any]:
    """The chain of every tutorial, with the two parts exchanged."""
    retriever = NNMRetriever(nnm=nnm, k=2)
    chat = ChatNNM(nnm=nnm, max_tokens=24, **options)
    return {"context": retriever | join, "question": RunnablePassthrough()} | PROMPT | chat


def main(model: str = "nnm-mini") -> None:
    """Answer, and show what the answers were made of."""
    question = "Who leads the Falcon project?"
    with NNM.open(model) as nnm:
        nnm.add(NOTES)
        chain = rag(nnm)
        for use in ("first use", "second use"):
            show(use, chain.invoke(question))
        print("streamed:", "".join(chunk.text for chunk in chain.stream(question)))

        # What was never read together can be placed side by side at once: faster, and not exact.
        show("fast", rag(nnm, policy="fast").invoke("Where does the spare key hang?"))
        # The control: the very same tokens, read.
        show("read", rag(nnm, mode="read").invoke(question))


def show(name: str, message: Any) -> None:
    """One line about an answer."""
    usage, receipt = message.usage_metadata, message.response_metadata["nnm"]
    print(
        f"{name:10} {message.text!r:20} tier={receipt['tier']} of {usage['input_tokens']} prompt tokens "
        f"{usage['input_token_details']['cache_read']} were injected"
    )


if __name__ == "__main__":
    main()
