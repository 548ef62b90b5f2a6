"""Swap the retriever of a chain, keep its model: documents are ordinary documents.

python examples/langchain_swap_retriever.py
"""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_nnm import NNMVectorStore
from nnm_core import NNM

NOTES = [
    Document("The bins are collected on Tuesday morning.", metadata={"topic": "home", "year": 2024}),
    Document("Maria Lopez leads the Falcon project.", metadata={"topic": "work", "year": 2025}),
    Document("The spare key hangs behind the cellar door.", metadata={"topic": "home", "year": 2023}),
]
PROMPT = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")


def join(documents: list[Document]) -> str:
    """The text of the documents, one below the other."""
    return "\n\n".join(document.page_content for document in documents)


def main(model: str = "nnm-mini") -> None:
    """The same chain as before, with another retriever."""
    anything = GenericFakeChatModel(messages=iter([AIMessage("Maria Lopez")]))  # your chain's model, whatever it is
    with NNM.open(model) as nnm:
        store = NNMVectorStore(nnm)
        store.add_documents(NOTES)
        retriever = store.as_retriever(search_kwargs={"k": 1})

        context = {"context": retriever | join, "question": RunnablePassthrough()}
        print((context | PROMPT).invoke("Who leads the Falcon project?").to_string())
        print((context | PROMPT | anything | StrOutputParser()).invoke("Who leads the Falcon project?"))

        # Filters are mappings or Qdrant filters, and never fail open.
        for document in store.similarity_search("key", k=3, filter={"topic": "home", "year": {"$gte": 2024}}):
            print(document.metadata, document.page_content)


if __name__ == "__main__":
    main()
