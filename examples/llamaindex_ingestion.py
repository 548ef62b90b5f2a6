"""An ingestion pipeline with a document store: unchanged documents cost nothing, changed ones replace their nodes.

python examples/llamaindex_ingestion.py
"""

from __future__ import annotations

from llama_index.core import Document
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore

from llamaindex_nnm import NNMLLM, NNMEmbedding, NNMQueryEngine, NNMVectorStore
from nnm_core import NNM
from nnm_core.model.load import LoadedModel


def main(model: str | LoadedModel = "nnm-mini") -> None:
    """Ingest, change one document, ingest again."""
    documents = [
        Document(text="The bins are collected on Tuesday morning.", doc_id="bins"),
        Document(text="Maria Lopez leads the Falcon project. Her office is room 417.", doc_id="falcon"),
    ]
    with NNM.open(model) as nnm:
        llm = NNMLLM(nnm, max_tokens=16)
        pipeline = IngestionPipeline(
            transformations=[
                SentenceSplitter(chunk_size=128, chunk_overlap=0, tokenizer=llm.tokenize),
                NNMEmbedding(nnm),
            ],
            vector_store=NNMVectorStore(nnm),
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS,
        )
        print("first run:", len(pipeline.run(documents=documents)), "nodes")
        print("again:", len(pipeline.run(documents=documents)), "nodes")
        documents[0] = Document(text="The bins are collected on Friday morning.", doc_id="bins")
        print("one changed:", len(pipeline.run(documents=documents)), "nodes,", nnm.stats()["memories"], "in memory")
        print(NNMQueryEngine.from_nnm(nnm, 1, llm=llm).query("When are the bins collected?"))


if __name__ == "__main__":
    main()
