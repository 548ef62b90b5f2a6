"""Retrievers around the retriever: an ensemble, and a reranker that keeps the best document.

python examples/langchain_ensemble_compression.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

from langchain_nnm import ChatNNM, NNMRetriever, NNMVectorStore
from nnm_core import NNM

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The Falcon project has a budget of 40,000 euros.",
    "The spare key hangs behind the cellar door.",
]


class SharedWords(BaseDocumentCompressor):
    """Keeps the document that shares most words with the question: stands for your reranker."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """The best document."""
        asked = set(query.lower().strip("?").split())
        return sorted(documents, key=lambda found: -len(asked & set(found.page_content.lower().split())))[:1]


def main(model: str = "nnm-mini") -> None:
    """Find with two retrievers, keep one document, answer; the chat model injects what is left."""
    question = "Who leads the Falcon project?"
    with NNM.open(model) as nnm:
        nnm.add(NOTES)
        by_words = NNMVectorStore(nnm).as_retriever(search_kwargs={"k": 3, "alpha": 0})
        ensemble = EnsembleRetriever(retrievers=[NNMRetriever(nnm=nnm, k=3), by_words], weights=[0.6, 0.4])
        best = ContextualCompressionRetriever(base_compressor=SharedWords(), base_retriever=ensemble)
        chat = ChatNNM(nnm=nnm, max_tokens=24, policy="fast")
        for retriever in (ensemble, best):
            documents = retriever.invoke(question)
            context = "\n\n".join(document.page_content for document in documents)
            answer: Any = chat.invoke(f"Context:\n{context}\n\nQuestion: {question}")
            how = answer.response_metadata["nnm"]["memories"].values()
            print(f"{type(retriever).__name__}: {len(documents)} documents, {answer.text!r}, {list(how)}")


if __name__ == "__main__":
    main()
