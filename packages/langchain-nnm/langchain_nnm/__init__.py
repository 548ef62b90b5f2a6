"""Neural Native Memory for LangChain: a retriever and a chat model that share one memory of model states."""

from __future__ import annotations

from langchain_nnm._version import __version__
from langchain_nnm.chat_models import ChatNNM
from langchain_nnm.embeddings import NNMEmbeddings
from langchain_nnm.retrievers import NNMRetriever
from langchain_nnm.vectorstores import NNMVectorStore

__all__ = ["ChatNNM", "NNMEmbeddings", "NNMRetriever", "NNMVectorStore", "__version__"]
