"""Neural Native Memory for LlamaIndex: query engines, chat engines and indexes on a model's own states."""

from __future__ import annotations

from llamaindex_nnm._version import __version__
from llamaindex_nnm.embeddings import NNMEmbedding
from llamaindex_nnm.engine_bound import NotPicklableError
from llamaindex_nnm.events import NNMReceiptEvent, receipts
from llamaindex_nnm.llms import NNMLLM
from llamaindex_nnm.memory import NNMMemory
from llamaindex_nnm.query_engines import NNMQueryEngine
from llamaindex_nnm.retrievers import NNMRetriever
from llamaindex_nnm.synthesizers import NNMSynthesizer
from llamaindex_nnm.vector_stores import NNMVectorStore

__all__ = [
    "NNMLLM",
    "NNMEmbedding",
    "NNMMemory",
    "NNMQueryEngine",
    "NNMReceiptEvent",
    "NNMRetriever",
    "NNMSynthesizer",
    "NNMVectorStore",
    "NotPicklableError",
    "__version__",
    "receipts",
]
