"""Sparse vectors: the words and token pieces of a text as weighted ids; BM25 on the document side, IDF in the index.

A text is Unicode-normalised (NFKC, case folded) and cut into words. Each word is stemmed and hashed into a stable
31-bit id. Its runs of a few characters (McNamee & Mayfield 2004) are terms of a small weight beside it, so that
inflections, compounds, rare names and misspellings still match in part; so may the pieces that the model's tokenizer
cuts a word into. Scripts without blanks between words give pairs of neighbouring characters. The words of a headline
(a short first line above others) count once more.
The document weight is BM25's saturated term frequency,

    w(t, d) = tf (k1 + 1) / (tf + k1 (1 - b + b |d| / avgdl)),

the query weight is the term's count, and the index multiplies by IDF(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5))
(Qdrant's `Modifier.IDF`): together BM25 as Lucene has it (Robertson & Zaragoza 2009). `average_length` belongs to the
settings that a collection stores: it is set from the first batch and renewed when the collection has doubled, together
with the whitening; the sparse vectors are then made anew from the texts, which needs no model.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from nnm_core.errors import InvalidInputError
from nnm_core.storage.index import SparseVector

# Lucene's list: words that say nothing about a subject in any collection.
_ENGLISH = """a an and are as at be but by for if in into is it no not of on or such that the their then there these
    they this to was will with"""
ENGLISH_STOP_WORDS = frozenset(_ENGLISH.split())
# Characters; a longer first line is a paragraph.
_LONGEST_HEADLINE = 250
_WORD = re.compile(r"\w+(?:'\w+)*", re.UNICODE)
# Ideographs, kana, and the South-East Asian scripts that are written without blanks.
_UNSPACED = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+"
)


@dataclass(frozen=True)
class SparseSettings:
    """How texts become sparse vectors; stored with the collection.

    Attributes:
        stemmer: a Snowball language (``english``, ``german`` ...) or None for whole words.
        stop_words: words left out, after normalisation and before stemming.
        k1: saturation of the term frequency.
        b: strength of the length normalisation.
        average_length: mean number of words of the collection's documents.
        piece_weight: weight of the model's token pieces of words that it has no single token for; 0 leaves them out.
        gram_weight: weight of the runs of characters within words; 0 leaves them out.
        gram_size: length of such a run, the word's two borders counted as characters.
        headline: how many times more the words of a headline count.
    """

    stemmer: str | None = "english"
    stop_words: frozenset[str] = ENGLISH_STOP_WORDS
    k1: float = 1.5
    b: float = 0.4
    average_length: float = 100.0
    piece_weight: float = 0.0
    gram_weight: float = 0.1
    gram_size: int = 4
    headline: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_words", frozenset(self.stop_words))
        if self.k1 < 0 or not 0 <= self.b <= 1 or self.average_length <= 0 or self.piece_weight < 0:
            raise InvalidInputError("Sparse settings out of range.", hint="k1 >= 0, 0 <= b <= 1, average_length > 0.")
        if self.gram_weight < 0 or self.gram_size < 2 or self.headline < 0:
            raise InvalidInputError("Sparse settings out of range.", hint="gram_size >= 2, no negative weights.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-like values; `from_dict` reads them back."""
        return {**asdict(self), "stop_words": sorted(self.stop_words)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparseSettings:
        """What `to_dict` gave; what a release had no name for yet is off, as it was in the vectors that it made."""
        return cls(**{"gram_weight": 0.0, "headline": 0, **values})


class SparseEncoder:
    """Sparse vectors of documents and queries.

    Args:
        tokenizer: the model's tokenizer, used for the pieces of long words; None works without pieces.
        settings: see `SparseSettings`.

    Raises:
        InvalidInputError: an unknown stemmer.
    """

    def __init__(self, tokenizer: Any = None, settings: SparseSettings | None = None) -> None:
        self.settings = settings or SparseSettings()
        self._tokenizer = tokenizer
        self._stem = _stemmer(self.settings.stemmer)
        self._word_ids = lru_cache(maxsize=1 << 17)(self._ids_of_word)

    def with_average_length(self, average_length: float) -> SparseEncoder:
        """The same encoder for a collection of another mean document length."""
        return SparseEncoder(self._tokenizer, replace(self.settings, average_length=max(average_length, 1.0)))

    def length(self, text: str) -> int:
        """The number of words that count for |d| and avgdl."""
        return sum(1 for _ in self._words(self._with_headline(text)))

    def average_length(self, texts: Sequence[str]) -> float:
        """The mean of `length` over texts, at least 1."""
        return max(1.0, sum(map(self.length, texts)) / max(len(texts), 1))

    def document(self, text: str, expected: Mapping[str, float] | None = None) -> SparseVector:
        """BM25 term weights of a document (IDF left to the index).

        Args:
            text: the document.
            expected: words that it does not contain with the term frequencies that they are given, as
                `nnm_core.embedding.expansion` finds them. They do not make it longer.
        """
        counts, length = self._counts(self._with_headline(text))
        settings = self.settings
        norm = settings.k1 * (1 - settings.b + settings.b * length / settings.average_length)
        frequencies = {key: float(tf) for key, (tf, _) in counts.items()}
        for word, tf in (expected or {}).items():
            for key in self.term_of(word):
                frequencies[key] = frequencies.get(key, 0.0) + tf
        return _vector({key: tf * (settings.k1 + 1) / (tf + norm) for key, tf in frequencies.items()})

    def query(self, text: str, expected: Mapping[str, float] | None = None) -> SparseVector:
        """Term counts of a query; pieces and runs of characters carry their weight.

        Args:
            text: the query.
            expected: further words with their weights, as `nnm_core.embedding.expansion` finds them.
        """
        counts, _ = self._counts(text)
        weights = {key: tf * weight for key, (tf, weight) in counts.items()}
        for word, weight in (expected or {}).items():
            for key in self.term_of(word):
                weights[key] = weights.get(key, 0.0) + weight
        return _vector(weights)

    def term_of(self, word: str) -> tuple[int, ...]:
        """The ids of a word as a whole, without pieces and runs; of every word if it is several."""
        return tuple(term_id("w", self._stem(part)) for part in self._words(word))

    def _counts(self, text: str) -> tuple[dict[int, tuple[int, float]], int]:
        """Per id how often it occurs and what it weighs in a query; and the number of words."""
        words = Counter(self._words(text))
        counts: dict[int, tuple[int, float]] = {}
        for word, times in words.items():
            for key, weight in self._word_ids(word):
                counts[key] = (counts.get(key, (0, 0.0))[0] + times, weight)
        return counts, words.total()

    def _with_headline(self, text: str) -> str:
        """The text with its headline, if it has one, put before it once more."""
        first, _, rest = text.strip().partition("\n")
        if not rest or len(first) > _LONGEST_HEADLINE:
            return text
        return "\n".join([first] * self.settings.headline + [text])

    def _words(self, text: str) -> Iterator[str]:
        stop = self.settings.stop_words
        plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
        for match in _WORD.finditer(plain):
            for word in _split_scripts(match.group()):
                if word not in stop:
                    yield word

    def _ids_of_word(self, word: str) -> tuple[tuple[int, float], ...]:
        found = [(term_id("w", self._stem(word)), 1.0)]
        weight = self.settings.piece_weight
        if weight > 0 and self._tokenizer is not None:
            pieces = self._tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            if len(pieces) > 1:
                found += [(term_id("t", str(piece)), weight) for piece in sorted(set(pieces))]
        return tuple(found + self._grams(word))

    def _grams(self, word: str) -> list[tuple[int, float]]:
        """The runs of characters of a word that is longer than one run."""
        size, bordered = self.settings.gram_size, f" {word} "
        if self.settings.gram_weight == 0 or len(bordered) <= size:
            return []
        runs = (bordered[start : start + size] for start in range(len(bordered) - size + 1))
        return [(term_id("g", run), self.settings.gram_weight) for run in dict.fromkeys(runs)]


def term_id(kind: str, term: str) -> int:
    """The 31-bit id of a term: the same on every machine and in every version (BLAKE2b)."""
    digest = hashlib.blake2b(f"{kind}:{term}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


def _split_scripts(word: str) -> Iterator[str]:
    """The word itself, or pairs of characters where a script does not separate its words."""
    start = 0
    for match in _UNSPACED.finditer(word):
        if match.start() > start:
            yield word[start : match.start()]
        run = match.group()
        yield from ((run[i : i + 2] for i in range(len(run) - 1)) if len(run) > 1 else (run,))
        start = match.end()
    if start < len(word):
        yield word[start:]


def _stemmer(language: str | None) -> Callable[[str], str]:
    if language is None:
        return str
    import Stemmer

    if language not in Stemmer.algorithms():
        raise InvalidInputError(f"No stemmer for {language!r}.", hint=f"One of {Stemmer.algorithms()} or None.")
    return cast(Callable[[str], str], Stemmer.Stemmer(language).stemWord)


def _vector(weights: dict[int, float]) -> SparseVector:
    keys = sorted(weights)
    return SparseVector(np.array(keys, np.int64), np.array([weights[key] for key in keys], np.float32))
