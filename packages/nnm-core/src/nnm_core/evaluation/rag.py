"""Classic RAG, the arm to compare with: a foreign embedder finds passages, and the model reads their text.

The passages stand in a prompt of NNM's own layout and are read by the same model with the same decoding, so that the
two arms differ in how passages are found and in whether they are read or injected. The prompt is ordinary text,
tokenised in one piece, as any RAG chain sends it.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnm_core.records import Answer, Hit, Memory, Message

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

    def close(self) -> None:
        """Give back what it holds; nothing is searched any more."""
        ...


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

    def close(self) -> None:
        """It holds nothing but words."""


def best(scores: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """The places of the `k` highest scores [n], best first, ties by place."""
    order = np.argsort(-scores, kind="stable")[:k]
    return [(int(place), float(scores[place])) for place in order]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def default_retriever() -> TextRetriever:
    """MiniLM in Qdrant where MiniLM is installed, else BM25."""
    from nnm_core.evaluation.embedders import EmbeddingRetriever, minilm, minilm_is_installed

    return EmbeddingRetriever(minilm()) if minilm_is_installed() else BM25Retriever()


def plain_prompt(question: str, texts: Sequence[str], system: str | None) -> list[Message]:
    """The prompt of classic RAG: NNM's layout, as ordinary text."""
    from nnm_core.model.prompt import CONTEXT_HEADER, QUESTION_HEADER, SEPARATOR

    context = CONTEXT_HEADER + "".join(text + SEPARATOR for text in texts) if texts else ""
    turn = Message("user", f"{context}{QUESTION_HEADER}{question}")
    return [Message("system", system), turn] if system else [turn]


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
            options: of the decoding, passed on to `NNM.answer`.
        """
        return retrieve_and_read(self.engine, question, lambda: self._search(question, k), **options)

    def _search(self, question: str, k: int) -> list[Hit]:
        return [Hit(self.memories[place], score) for place, score in self.retriever.search(question, k)]


def retrieve_and_read(engine: NNM, question: str, retrieve: Callable[[], Sequence[Hit]], **options: Any) -> Answer:
    """Put the texts of what `retrieve` finds into the prompt, best first, and let the model read it.

    Raises:
        ContextOverflowError: they do not fit the model's context; nothing is cut.
    """
    started = time.perf_counter()
    hits = tuple(retrieve())
    spent = time.perf_counter() - started
    prompt = plain_prompt(question, [hit.memory.text for hit in hits], engine.system)
    answer = engine.answer(prompt, mode="bare", **options)
    receipt = replace(
        answer.receipt,
        seconds_to_first_token=answer.receipt.seconds_to_first_token + spent,
        seconds_total=answer.receipt.seconds_total + spent,
        memories={hit.memory.id: "read" for hit in hits},
    )
    return replace(answer, hits=hits, receipt=receipt)
