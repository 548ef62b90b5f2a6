"""Neural Native Memory for LlamaIndex: query engines, chat engines and indexes on a model's own states."""

from __future__ import annotations

from llamaindex_nnm._version import __version__
from llamaindex_nnm.events import NNMReceiptEvent
from llamaindex_nnm.llms import NNMLLM
from llamaindex_nnm.retrievers import NNMRetriever

__all__ = ["NNMLLM", "NNMReceiptEvent", "NNMRetriever", "__version__"]
