"""The vector store: LangChain's whole interface over an engine, with its own vectors or another embedder's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from langchain_nnm._documents import as_documents, ids_for, to_document
from langchain_nnm._engine import checked_engine
from langchain_nnm._search import EngineSearch, refuse_unknown
from langchain_nnm.embeddings import NNMEmbeddings
from langchain_nnm.retrievers import StoreRetriever
from nnm_core import Hit, InvalidInputError

Scored = list[tuple[Document, float]]


class NNMVectorStore(VectorStore):
    """Documents as memories: their text is read once, and found again by the model's own states.

    With `embedding` left out, or of the same engine, search is the engine's own. Any other `Embeddings` works too:
    its vectors are stored and compared as they are, and the texts still get states, so that `ChatNNM` injects what
    is found either way. One namespace holds vectors of one kind.

    Search options that go with every search, and into ``search_kwargs`` of a retriever:

    * ``filter``: ``{"year": {"$gte": 2020}, "lang": ["de", "en"]}`` or a Qdrant filter; what is not understood raises.
    * ``alpha``: 1 ranks by vectors alone, 0 by words alone, between them by both.
    * ``scope``: conversation or request that may inject what is found.

    Args:
        nnm: an open `nnm_core.NNM`. It is not closed here.
        embedding: whose vectors are stored and compared; None for the engine's own.
        alpha: the default of searches; None leaves it to the engine, and compares another embedder's vectors alone.
        scope: the default of searches.
    """

    def __init__(
        self, nnm: Any, embedding: Embeddings | None = None, *, alpha: float | None = None, scope: str = ""
    ) -> None:
        self.nnm = checked_engine(nnm)
        own = embedding is None or (isinstance(embedding, NNMEmbeddings) and embedding.nnm is nnm)
        self._foreign = None if own else embedding
        self._embedding = NNMEmbeddings(nnm=nnm) if embedding is None else embedding
        self._engine = EngineSearch(nnm, foreign=not own, alpha=alpha, scope=scope)

    @property
    def embeddings(self) -> Embeddings:
        """Whose vectors are compared."""
        return self._embedding

    # -- writing ------------------------------------------------------------------------------------------------

    def add_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Store documents and return their ids in order; a known id gets the new text and metadata.

        Args:
            documents: with text; metadata must be JSON-like, and comes back equal.
            ids: any strings; where missing, the document's own id, else one made of its text and metadata.
            **kwargs: `batch_size`, which indexing passes, is not needed here; nothing else is understood.

        Raises:
            InvalidInputError: nothing was stored then.
        """
        refuse_unknown(kwargs, allowed=("batch_size",))
        names = ids_for(documents, ids)
        latest = dict(zip(names, documents, strict=True))
        vectors = self._foreign.embed_documents(_texts(latest)) if self._foreign and latest else None
        self.nnm.add(*self._rows(latest), vectors=vectors, foreign=self._foreign is not None)
        return names

    async def aadd_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """As `add_documents`, off the event loop."""
        refuse_unknown(kwargs, allowed=("batch_size",))
        names = ids_for(documents, ids)
        latest = dict(zip(names, documents, strict=True))
        vectors = await self._foreign.aembed_documents(_texts(latest)) if self._foreign and latest else None
        await self.nnm.aadd(*self._rows(latest), vectors=vectors, foreign=self._foreign is not None)
        return names

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store texts; see `add_documents`. Lists of another length are refused (the base class drops texts)."""
        return self.add_documents(as_documents(texts, metadatas), ids=ids, **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, off the event loop."""
        return await self.aadd_documents(as_documents(texts, metadatas), ids=ids, **kwargs)

    def _rows(self, documents: dict[str, Document]) -> tuple[list[str], list[str], list[dict[str, Any]]]:
        return _texts(documents), list(documents), [document.metadata for document in documents.values()]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Take documents out of recall; without ids all of them. Unknown ids are passed over.

        Their history stays until it is forgotten: see `forget`.
        """
        refuse_unknown(kwargs)
        self.nnm.delete(self._all_ids() if ids is None else ids)
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """As `delete`, off the event loop."""
        refuse_unknown(kwargs)
        await self.nnm.adelete(await asyncio.to_thread(self._all_ids) if ids is None else ids)
        return True

    def _all_ids(self) -> list[str]:
        return [memory.id for memory in self.nnm.find()]

    def forget(self, ids: list[str]) -> int:
        """Erase documents and all that was derived from them, history included, from RAM and from disk."""
        return int(self.nnm.forget(ids))

    async def aforget(self, ids: list[str]) -> int:
        """As `forget`, off the event loop."""
        return int(await self.nnm.aforget(ids))

    # -- reading ------------------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in order; ids that are not there are left out."""
        return [to_document(memory) for memory in self.nnm.get(list(ids), missing="skip")]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`, off the event loop."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` documents that fit `query` best, best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search`, off the event loop."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """Documents and scores, higher is better.

        With ``alpha`` 1 or another embedder's vectors, scores are cosines. The engine's own fused scores go from 0
        to 1 and compare within one search only.
        """
        return _scored(self._engine.search(query, self._vector_of(query), k, **kwargs))

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """As `similarity_search_with_score`, off the event loop."""
        vector = await self._avector_of(query)
        return _scored(await self._engine.asearch(query, vector, k, **kwargs))

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` documents whose vectors are nearest to `embedding`, from the store's embeddings."""
        return [to_document(hit.memory) for hit in self._engine.search("", embedding, k, alpha=1, **kwargs)]

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """As `similarity_search_by_vector`, off the event loop."""
        return [to_document(hit.memory) for hit in await self._engine.asearch("", embedding, k, alpha=1, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Of the `fetch_k` best documents, `k` that are relevant and differ from each other.

        Args:
            query: any text.
            k: how many at most.
            fetch_k: how many to choose from.
            lambda_mult: 1 is relevance alone (the order of `similarity_search`), 0 variety alone.
            **kwargs: search options.
        """
        return self._diverse(
            self._engine.search(query, self._vector_of(query), max(k, fetch_k), **kwargs), k, lambda_mult
        )

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, off the event loop."""
        vector = await self._avector_of(query)
        hits = await self._engine.asearch(query, vector, max(k, fetch_k), **kwargs)
        return await asyncio.to_thread(self._diverse, hits, k, lambda_mult)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        return self._diverse(self._engine.search("", embedding, max(k, fetch_k), alpha=1, **kwargs), k, lambda_mult)

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`, off the event loop."""
        hits = await self._engine.asearch("", embedding, max(k, fetch_k), alpha=1, **kwargs)
        return await asyncio.to_thread(self._diverse, hits, k, lambda_mult)

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """A retriever of this store, which searches in the scope of its call.

        Args:
            **kwargs: ``search_type`` (``similarity``, ``mmr`` or ``similarity_score_threshold``), ``search_kwargs``
                and ``tags``.
        """
        tags = kwargs.pop("tags", None) or [*self._get_retriever_tags()]
        return StoreRetriever(vectorstore=self, tags=tags, **kwargs)

    # -- relevance ----------------------------------------------------------------------------------------------

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self._engine.relevance(None)

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        relevance = self._engine.relevance(kwargs.get("alpha"))
        found = self.similarity_search_with_score(query, k, **kwargs)
        return [(document, relevance(score)) for document, score in found]

    async def _asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        relevance = self._engine.relevance(kwargs.get("alpha"))
        found = await self.asimilarity_search_with_score(query, k, **kwargs)
        return [(document, relevance(score)) for document, score in found]

    def _vector_of(self, query: str) -> list[float] | None:
        return self._foreign.embed_query(query) if self._foreign else None

    async def _avector_of(self, query: str) -> list[float] | None:
        return await self._foreign.aembed_query(query) if self._foreign else None

    def _diverse(self, hits: list[Hit], k: int, lambda_mult: float) -> list[Document]:
        return [to_document(hit.memory) for hit in self._engine.diverse(hits, k, lambda_mult)]

    # -- construction -------------------------------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        nnm: Any = None,
        **kwargs: Any,
    ) -> NNMVectorStore:
        """A store with these texts in it.

        Args:
            texts: to be stored.
            embedding: `NNMEmbeddings`, or any other with `nnm` given.
            metadatas: one for each text.
            ids: one for each text.
            nnm: the engine; that of `NNMEmbeddings` if left out.
            **kwargs: of the constructor.

        Raises:
            InvalidInputError: no engine is given.
        """
        store = cls._made(embedding, nnm, kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        nnm: Any = None,
        **kwargs: Any,
    ) -> NNMVectorStore:
        """As `from_texts`, off the event loop."""
        store = cls._made(embedding, nnm, kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def _made(cls, embedding: Embeddings | None, nnm: Any, kwargs: dict[str, Any]) -> NNMVectorStore:
        engine = embedding.nnm if nnm is None and isinstance(embedding, NNMEmbeddings) else nnm
        if engine is None:
            raise InvalidInputError("No engine is given.", hint="Pass nnm=NNM.open(...), or NNMEmbeddings.")
        return cls(engine, embedding, **kwargs)


def _texts(documents: dict[str, Document]) -> list[str]:
    return [document.page_content for document in documents.values()]


def _scored(hits: list[Hit]) -> Scored:
    return [(to_document(hit.memory), hit.score) for hit in hits]
