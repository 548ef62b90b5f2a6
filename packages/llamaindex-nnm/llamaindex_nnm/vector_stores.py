"""The vector store: LlamaIndex's nodes as memories of one namespace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from llamaindex_nnm.engine_bound import EngineHandle, EngineOwner, known_fields
from llamaindex_nnm.filters import NO_TURNS, all_of, only_documents, only_nodes, to_engine_filter
from llamaindex_nnm.nodes import metadata_of, text_of, to_node
from llamaindex_nnm.queries import Recall, run
from nnm_core import InvalidInputError, Memory

if TYPE_CHECKING:
    from nnm_core import NNM


class NNMVectorStore(EngineOwner, BasePydanticVectorStore):
    """Keeps nodes as memories and finds them; what is found takes a lease, so an `NNMLLM` injects it.

    A query's mode says how: ``default`` (see `recall`), ``mmr``, ``sparse`` (words alone), ``hybrid`` (``alpha``
    weighs vectors against words: 1 is vectors alone, 0 words alone, 0.5 if it is not given). Other modes raise.
    Filters mean what `llamaindex_nnm.filters` says; an empty list of ``node_ids`` or ``doc_ids`` restricts nothing.

    Everything is durable when `add` returns, if the engine has a path; `persist` has nothing to do. Turns that an
    `NNMMemory` keeps in the same namespace are not part of the store.

    Args:
        nnm: the open engine; it is shared, not closed.
        **fields: see the fields below.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    vectors: Literal["nnm", "foreign"] = Field(
        default="nnm", description="Whose embeddings the nodes carry: NNMEmbedding's, or any other model's."
    )
    recall: Recall = Field(
        default="engine",
        description="Default mode on NNM's own vectors: as the engine recalls (words and vectors), or vector alone.",
    )
    scope: str = Field(default="", description="Conversation or request that may inject what is found.")
    forget: bool = Field(default=False, description="Deleting erases the history too, instead of keeping it.")

    _engine: EngineHandle = PrivateAttr()

    def __init__(self, nnm: NNM, **fields: Any) -> None:
        engine = EngineHandle(nnm)
        super().__init__(**known_fields(type(self), fields))
        self._engine = engine

    @classmethod
    def class_name(cls) -> str:
        """Stable name for serialisation."""
        return "NNMVectorStore"

    @property
    def client(self) -> NNM:
        """The engine, under the name that LlamaIndex gives to it."""
        return self._engine.nnm

    # -- writing ------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Keep nodes; those of known ids replace them. Embeddings that the nodes carry are not made again.

        Raises:
            InvalidInputError: a node without text, or only some nodes with embeddings.
            StoreMismatchError: embeddings of another kind than those stored.
        """
        if not nodes:
            return []
        texts, metadatas = [text_of(node) for node in nodes], [metadata_of(node) for node in nodes]
        self.nnm.add(
            texts,
            [node.node_id for node in nodes],
            metadatas,
            vectors=self._embeddings(nodes),
            foreign=self.vectors == "foreign",
        )
        return [node.node_id for node in nodes]

    def _embeddings(self, nodes: Sequence[BaseNode]) -> list[list[float]] | None:
        given = [node.embedding for node in nodes if node.embedding is not None]
        if not given and self.vectors == "nnm":
            return None
        if len(given) < len(nodes):
            raise InvalidInputError(
                f"{len(nodes) - len(given)} of {len(nodes)} nodes have no embedding.",
                hint="Embed all nodes; with NNM's own vectors you may also embed none, the store does it then.",
            )
        return given

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a source document."""
        self._remove(self._find(only_documents([ref_doc_id])))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete these nodes, or those that pass the filters, or those of these that pass.

        Raises:
            InvalidInputError: neither is given; `clear` deletes everything.
        """
        if node_ids is None and filters is None:
            raise InvalidInputError("Neither ids nor filters say what to delete.", hint="Call clear() to delete all.")
        self._remove(self._select(node_ids, filters))

    def clear(self) -> None:
        """Delete all nodes of the namespace."""
        self._remove(self._find(None))

    def _remove(self, memories: Sequence[Memory]) -> None:
        ids = [memory.id for memory in memories]
        if self.forget:
            self.nnm.forget(ids)
        else:
            self.nnm.delete(ids)

    # -- reading ------------------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes with their embeddings: these ids in their order, or all that pass the filters, oldest first.

        Ids that are not there are passed over.
        """
        memories = self._select(node_ids, filters)
        vectors = self.nnm.vectors([memory.id for memory in memories])
        return [
            to_node(memory, None if vector is None else vector.tolist())
            for memory, vector in zip(memories, vectors, strict=True)
        ]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes that fit the query best, best first.

        Args:
            query: what to look for.
            **kwargs: ``mmr_threshold`` (1 is relevance alone, 0 is diversity alone; 0.5 if neither this nor the
                query says) and ``mmr_prefetch_k`` (how many candidates are looked at) in mode ``mmr``.

        Raises:
            FilterError: a filter that cannot be understood.
            InvalidInputError: a mode that is not supported, or a query without what its mode needs.
        """
        condition = all_of(
            NO_TURNS, to_engine_filter(query.filters), only_documents(query.doc_ids), only_nodes(query.node_ids)
        )
        hits = run(
            self.nnm, query, condition, native=self.vectors == "nnm", recall=self.recall, scope=self.scope, **kwargs
        )
        return VectorStoreQueryResult(
            nodes=[to_node(hit.memory) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.memory.id for hit in hits],
        )

    def _find(self, condition: dict[str, Any] | None) -> list[Memory]:
        return list(self.nnm.find(all_of(NO_TURNS, condition)))

    def _select(self, node_ids: Sequence[str] | None, filters: MetadataFilters | None) -> list[Memory]:
        condition = to_engine_filter(filters)
        if node_ids is None:
            return self._find(condition)
        memories = self.nnm.get(list(dict.fromkeys(node_ids)), missing="skip")
        if condition is None:
            return memories
        passing = {memory.id for memory in self._find(all_of(condition, only_nodes(node_ids)))}
        return [memory for memory in memories if memory.id in passing]

    # -- the same, off the event loop ---------------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """As `delete_nodes`."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """As `clear`."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`."""
        return await asyncio.to_thread(self.query, query, **kwargs)
