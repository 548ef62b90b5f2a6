"""Neural Native Memory for LangChain: a retriever and a chat model that share one memory of model states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_nnm._version import __version__
from langchain_nnm.chat_models import ChatNNM
from langchain_nnm.embeddings import NNMEmbeddings
from langchain_nnm.llms import NNMLLM
from langchain_nnm.retrievers import NNMRetriever
from langchain_nnm.vectorstores import NNMVectorStore

if TYPE_CHECKING:
    from langchain_nnm.middleware import NNMMiddleware

__all__ = [
    "NNMLLM",
    "ChatNNM",
    "NNMEmbeddings",
    "NNMMiddleware",
    "NNMRetriever",
    "NNMVectorStore",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Agents are in the package langchain, which nothing else here needs.
    if name == "NNMMiddleware":
        try:
            from langchain_nnm.middleware import NNMMiddleware
        except ModuleNotFoundError as error:
            raise ImportError(
                "NNMMiddleware needs the package langchain: pip install 'langchain-nnm[agents]'"
            ) from error
        return NNMMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
