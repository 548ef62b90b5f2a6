"""From texts and raw vectors to what an index compares: fitted to one namespace, and kept in its journal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.storage.index import Point, SparseVector, VectorIndex
from nnm_core.storage.journal import Journal
from nnm_core.storage.journal_records import Entry
from nnm_core.token_level import FIT_FROM, TokenLevel

Vectors = NDArray[np.float32]
_WHITENING, _SPARSE = "whitening", "sparse"


class Transforms:
    """Dense, sparse and token vectors as one namespace compares them.

    Args:
        journal: of the namespace.
        tokenizer: of the model, whose tokens are the words.
        dim: length of the raw vectors.
        foreign: they are another embedder's, and compared as they are.
        token_level: makes the token vectors; None for none.
        fresh: what was fitted before was fitted to another embedding.
    """

    def __init__(
        self,
        journal: Journal,
        tokenizer: Any,
        *,
        dim: int,
        foreign: bool,
        token_level: TokenLevel | None,
        fresh: bool = False,
    ) -> None:
        self._journal = journal
        self._dim, self._foreign = dim, foreign
        self.token_level = token_level
        saved = None if fresh else journal.get_setting(_WHITENING)
        self.whitening = Whitening.identity(dim) if saved is None else Whitening.from_arrays(load_arrays(saved))
        # The word side is kept whole: another release's defaults must not mix with what is in the index.
        words = journal.get_setting(_SPARSE)
        self.sparse = SparseEncoder(tokenizer, SparseSettings.from_dict(words) if words else None)
        if words is None:
            journal.set_setting(_SPARSE, self.sparse.settings.to_dict())

    @property
    def fitted_on(self) -> int:
        """Memories that the transforms were last fitted on."""
        return self.whitening.fitted_on

    def dense(self, raw: Vectors) -> Vectors:
        """A query's raw vector [dim] as it is compared."""
        made: Vectors = self.whitening.transform(raw[None])[0]
        return made

    def words(self, text: str) -> SparseVector:
        """The query side of the sparse vectors."""
        return self.sparse.query(text)

    def refit(self, batches: Iterable[Sequence[tuple[Entry, NDArray[Any] | None]]]) -> None:
        """Fit whitening and mean length to all live memories and their raw vectors, in one pass."""
        statistics = SufficientStatistics(self._dim)
        words = documents = 0
        for batch in batches:
            if not self._foreign:
                statistics.add(np.stack([vector for _, vector in batch if vector is not None]).astype(np.float32))
            words += sum(self.sparse.length(entry.memory.text) for entry, _ in batch)
            documents += len(batch)
        version = self.whitening.version + 1
        if self._foreign:
            self.whitening = replace(Whitening.identity(self._dim, version=version), fitted_on=documents)
        else:
            self.whitening = Whitening.fit(statistics, version=version)
        self.sparse = self.sparse.with_average_length(words / max(documents, 1))
        self._journal.set_setting(_WHITENING, save_arrays(self.whitening.to_arrays()))
        self._journal.set_setting(_SPARSE, self.sparse.settings.to_dict())

    def scale_tokens(self, entries: Sequence[Entry]) -> bool:
        """Fit the token level's scale if it has none yet and these are enough; whether that was done."""
        if self.token_level is None or self.token_level.fitted or len(entries) < FIT_FROM:
            return False
        self.token_level.fit([entry.memory.text for entry in entries])
        return True

    def points(
        self,
        entries: Sequence[Entry],
        raw: Sequence[NDArray[Any] | None],
        index: VectorIndex,
        *,
        remake_tokens: bool = False,
    ) -> list[Point]:
        """What an index keeps of `entries`; token vectors that `index` has are not made again."""
        present = [vector.astype(np.float32) for vector in raw if vector is not None]
        dense = iter(self.whitening.transform(np.stack(present)) if present else ())
        vectors = [None if vector is None else next(dense) for vector in raw]
        tokens = self._token_vectors(entries, index, remake=remake_tokens)
        return [self._point(*row) for row in zip(entries, vectors, tokens, strict=True)]

    def _token_vectors(self, entries: Sequence[Entry], index: VectorIndex, *, remake: bool) -> list[Vectors | None]:
        """Those that the index has already, else made by the model; None everywhere without a token level."""
        found: list[Vectors | None] = [None] * len(entries)
        if self.token_level is None:
            return found
        if not remake:
            known = index.retrieve([entry.point for entry in entries])
            found = [None if point is None else point.tokens for point in known]
        missing = [place for place, rows in enumerate(found) if rows is None]
        made = self.token_level.documents([entries[place].memory.text for place in missing])
        for place, rows in zip(missing, made, strict=True):
            found[place] = rows
        return found

    def _point(self, entry: Entry, dense: Vectors | None, tokens: Vectors | None) -> Point:
        payload = {"id": entry.memory.id, "metadata": dict(entry.memory.metadata)}
        # A vector equal to the mean has no direction left; the index would refuse it.
        dense = dense if dense is not None and dense.any() else None
        return Point(entry.point, dense, self.sparse.document(entry.memory.text), tokens, payload)
