"""The engine's own vectors, for whatever takes LangChain's embeddings."""

from __future__ import annotations

import asyncio

from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict

from langchain_nnm._engine import EngineComponent


class NNMEmbeddings(EngineComponent, Embeddings):
    """Embeds texts with the model of an engine.

    In an `NNMVectorStore` of the same engine nothing is embedded twice: text, state and vector come from one `add`.
    Vectors are raw and of unit length, the same for the same model whatever the engine's namespace holds.

    Attributes:
        nnm: an open `nnm_core.NNM`. It is not closed here.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of texts that are to be found."""
        vectors: list[list[float]] = self.nnm.embed(texts, "context").tolist() if texts else []
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        vector: list[float] = self.nnm.embed(text, "query")[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, off the event loop."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, off the event loop."""
        return await asyncio.to_thread(self.embed_query, text)
