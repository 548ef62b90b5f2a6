"""The vector side of the engine's public face: for frameworks that embed, store and search in different places."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnm_core.collection import Collection
from nnm_core.embedding.layers import LayerProfile, profile_layers
from nnm_core.embedding.pairs import self_labels
from nnm_core.embedding.prompts import EmbeddingRole
from nnm_core.errors import InvalidInputError
from nnm_core.records import Memory
from nnm_core.storage.filters import matches, parse_filter

Vectors = NDArray[np.float32]


class VectorFace:
    """What an open engine can do with vectors."""

    _collection: Collection

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `EngineClosedError` after `close`."""

    def embed(self, texts: str | Sequence[str], role: EmbeddingRole = "context") -> Vectors:
        """The raw vectors of texts, float32 [n, dim]: the same for the same model, whatever the namespace holds.

        `add(texts, vectors=...)` takes them and does not embed again; `search(vector=...)` compares them. Whitening,
        which changes as a namespace grows, is applied inside.

        Args:
            texts: any strings; one string gives one row.
            role: ``context`` for what is to be found, ``query`` for what searches.
        """
        self._check_open()
        return self._collection.embedder.encode([texts] if isinstance(texts, str) else list(texts), role)

    def vectors(self, ids: Sequence[str]) -> list[Vectors | None]:
        """The vectors as they were given or embedded (own ones rounded to float16), None where there is none."""
        self._check_open()
        return self._collection.journal.vectors(ids)

    def comparable(self, vectors: ArrayLike) -> Vectors:
        """Raw vectors [n, dim] as this namespace compares them now: whitened if they are its own, and of unit length.

        Cosines of these are what `search` ranks by; they change when the namespace is whitened anew.
        """
        self._check_open()
        return self._collection.transforms.whitening.transform(np.asarray(vectors, dtype=np.float32))

    def profile_layers(
        self,
        count: int = 200,
        *,
        labels: int = 64,
        apply: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> LayerProfile:
        """Measure the layers on a sample of this namespace's texts and keep the choice with the namespace.

        Args:
            count: texts to measure the intrinsic dimension on.
            labels: own sentences that have to find their documents when a layer is re-routed; 0 leaves the choice to
                the paper's rule.
            apply: embed by the choice from now on, which reads all texts again if it is another way than before.
            progress: told what is being measured.

        Raises:
            InvalidInputError: fewer than three memories.
        """
        self._check_open()
        collection = self._collection
        texts = [memory.text for memory in islice(self.find(), count)]
        base = collection.embedder.settings
        profile = profile_layers(collection.model, texts, self_labels(texts, labels), settings=base, progress=progress)
        collection.journal.set_setting("layers", profile.to_dict())
        chosen = profile.settings(base)
        if apply and chosen != base:
            collection.choose_embedding(chosen)
            self._reread()
        return profile

    @abstractmethod
    def _reread(self) -> None:
        """Read all texts again, for another model or another way to embed."""

    def find(self, filter: Any = None) -> Iterator[Memory]:
        """All memories that pass a metadata filter, oldest first; without a filter all. Takes no leases.

        Raises:
            FilterError: a malformed or unsupported filter.
        """
        self._check_open()
        condition = parse_filter(filter)
        entries = (entry for batch in self._collection.journal.iter_live() for entry in batch)
        return (entry.memory for entry in entries if matches(condition, entry.memory.metadata))


def given_vectors(vectors: ArrayLike | None, count: int) -> list[Vectors | None]:
    """One row for each text, or None for each.

    Raises:
        InvalidInputError: not one finite vector for each text.
    """
    if vectors is None:
        return [None] * count
    try:
        array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"The vectors are not an array of numbers: {error}.") from error
    if array.ndim != 2 or len(array) != count or not array.shape[1] or not np.isfinite(array).all():
        raise InvalidInputError(f"{count} texts need finite vectors of shape ({count}, dim), not {array.shape}.")
    return list(array)


def one_vector(vector: ArrayLike | None) -> Vectors | None:
    """A query vector [dim], or None.

    Raises:
        InvalidInputError: not a finite vector with a direction.
    """
    if vector is None:
        return None
    row = given_vectors(np.asarray(vector, dtype=np.float32)[None], 1)[0]
    if row is None or not row.any():
        raise InvalidInputError("The query vector is zero: no angle is defined for it.")
    return row
