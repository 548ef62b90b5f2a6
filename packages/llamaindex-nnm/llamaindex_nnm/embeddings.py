"""The engine's embedder for indexes: what it embeds, an `NNMVectorStore` of the same engine does not embed again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from llamaindex_nnm.engine_bound import EngineHandle, EngineOwner, known_fields

if TYPE_CHECKING:
    from nnm_core import NNM
    from nnm_core.embedding.prompts import EmbeddingRole


class NNMEmbedding(EngineOwner, BaseEmbedding):
    """Raw vectors of the engine's model: the same for the same model, whatever has been stored.

    An `NNMVectorStore` whitens them inside; in another store they are compared as they are, which finds less.

    Args:
        nnm: the open engine.
        **fields: of `BaseEmbedding` (embed_batch_size, callback_manager, embeddings_cache, ...).
    """

    _engine: EngineHandle = PrivateAttr()

    def __init__(self, nnm: NNM, **fields: Any) -> None:
        engine = EngineHandle(nnm)
        # Caches and pipelines take the model's name for its identity, so it must change with the weights.
        name = f"nnm/{nnm.model.name}/{nnm.model.identity[:12]}"
        super().__init__(**{"model_name": name, "embed_batch_size": 32, **known_fields(type(self), fields)})
        self._engine = engine

    @classmethod
    def class_name(cls) -> str:
        """Stable name for serialisation."""
        return "NNMEmbedding"

    def _embed(self, texts: list[str], role: EmbeddingRole) -> list[list[float]]:
        rows: list[list[float]] = self.nnm.embed(texts, role).tolist()
        return rows

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query], "query")[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], "context")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts, "context")

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
