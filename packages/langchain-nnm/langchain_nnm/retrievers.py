"""The retriever: ordinary documents out, and a lease for each, so that the chat model may inject them."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import Field

from langchain_nnm._documents import to_document
from langchain_nnm._engine import EngineComponent, in_scope, scope_of


class ScopedRetriever(BaseRetriever):
    """A retriever that searches in the scope of its call."""

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """As in the base class, in the scope that the config names."""
        return super().invoke(input, config, **in_scope(config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """As `invoke`, off the event loop."""
        return await super().ainvoke(input, config, **in_scope(config, kwargs))


class NNMRetriever(EngineComponent, ScopedRetriever):
    """Recalls memories for a query.

    Put it in place of a chain's retriever. The documents are plain text with their own metadata and id, so
    everything behind it goes on working; where the chain's model is a `ChatNNM` of the same engine, it finds their
    text in the prompt and injects their states.

    Attributes:
        nnm: an open `nnm_core.NNM`. It is not closed here.
        k: how many documents at most.
        filter: metadata conditions, as a mapping such as ``{"year": {"$gte": 2020}}`` or a Qdrant filter.
        scope: conversation or request that may inject what is found.

    All but the engine can be overridden in a call: ``retriever.invoke(query, k=2)``.
    """

    k: int = Field(default=4, gt=0)
    filter: Any = None
    scope: str = ""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        hits = self.nnm.search(query, **self._options(run_manager.metadata, **options))
        return [to_document(hit.memory) for hit in hits]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        hits = await self.nnm.asearch(query, **self._options(run_manager.metadata, **options))
        return [to_document(hit.memory) for hit in hits]

    def _options(
        self,
        metadata: dict[str, Any] | None,
        *,
        k: int | None = None,
        filter: Any = None,
        scope: str | None = None,
    ) -> dict[str, Any]:
        return {
            "k": self.k if k is None else k,
            "filter": self.filter if filter is None else filter,
            "scope": scope_of(self.scope, metadata) if scope is None else scope,
        }

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return LangSmithRetrieverParams(
            ls_retriever_name="nnm",
            ls_vector_store_provider="nnm",
            ls_embedding_provider="nnm",
            ls_embedding_model=self.nnm.model.name,
        )


class StoreRetriever(ScopedRetriever, VectorStoreRetriever):
    """What `NNMVectorStore.as_retriever` gives: LangChain's own, which also searches in the scope of its call."""
