"""An index and its query engine on neural memory: two constructors change, nothing else.

python examples/llamaindex_query_engine.py
"""

from __future__ import annotations

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llamaindex_nnm import NNMLLM, NNMEmbedding, NNMVectorStore, receipts
from nnm_core import NNM
from nnm_core.model.load import LoadedModel

NOTES = {
    "home": "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "work": "Maria Lopez leads the Falcon project. Her office is room 417.",
    "keys": "The spare key hangs behind the cellar door.",
}


def main(model: str | LoadedModel = "nnm-mini") -> None:
    """Build an index, ask it twice, and show what was read and what was injected."""
    with NNM.open(model) as nnm:
        storage = StorageContext.from_defaults(vector_store=NNMVectorStore(nnm))
        documents = [Document(text=text, metadata={"topic": topic}) for topic, text in NOTES.items()]
        # Each text is embedded once and read once: embedder and store share the engine.
        index = VectorStoreIndex.from_documents(documents, storage_context=storage, embed_model=NNMEmbedding(nnm))

        engine = index.as_query_engine(llm=NNMLLM(nnm, max_tokens=24), similarity_top_k=2)
        for use in ("first use", "second use"):
            with receipts() as taken:
                response = engine.query("Who leads the Falcon project?")
            receipt = taken[-1]
            print(f"{use:10} {str(response)!r} tier={receipt.tier} {receipt.tokens_injected} tokens injected")

        work = MetadataFilters(filters=[MetadataFilter(key="topic", value="work")])
        found = index.as_retriever(filters=work).retrieve("Where is the office?")
        print("filtered  ", [scored.node.metadata["topic"] for scored in found])


if __name__ == "__main__":
    main()
