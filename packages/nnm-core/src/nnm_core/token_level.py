"""The token level of one namespace: an option, kept with the namespace, that adds a multivector to every memory.

Its scale is fitted once, on the first memories of which there are enough, and then stays: token vectors are not made
anew as a namespace grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.embedding.token_vectors import TokenEncoder, TokenScale, TokenSettings
from nnm_core.model.load import LoadedModel
from nnm_core.storage.journal import Journal

Array = NDArray[np.float32]
FIT_FROM = 16
"""Memories that a scale is fitted on at least."""
_FIT_UP_TO = 64
_SCALE, _SETTINGS = "token_scale", "tokens"


class TokenLevel:
    """Token vectors of memories and queries.

    Args:
        model: that makes them.
        journal: of the namespace.
        embedding: of the namespace.
        fresh: what is stored was made by another model.
    """

    def __init__(self, model: LoadedModel, journal: Journal, embedding: EmbeddingSettings, *, fresh: bool) -> None:
        self._journal = journal
        saved = None if fresh else journal.get_setting(_SETTINGS)
        # Three quarters up, where token states mean most before they turn into predictions of the next one.
        settings = TokenSettings(model.layers * 3 // 4) if saved is None else TokenSettings(**saved)
        journal.set_setting(_SETTINGS, settings.to_dict())
        if fresh:
            journal.set_setting(_SCALE, None)
        scale = journal.get_setting(_SCALE)
        loaded = None if scale is None else TokenScale.from_arrays(load_arrays(scale))
        self._encoder = TokenEncoder(model, settings, loaded, embedding=embedding)

    @property
    def dim(self) -> int:
        """Length of a token vector."""
        return self._encoder.dim

    @property
    def fitted(self) -> bool:
        """Whether there is a scale; vectors made before are not comparable with those made after."""
        return self._encoder.scale is not None

    def fit(self, texts: Sequence[str]) -> None:
        """Fit the scale on texts, at most some dozens of them."""
        scale = TokenScale.fit(self._encoder.raw(texts[:_FIT_UP_TO]))
        self._encoder = self._encoder.with_scale(scale)
        self._journal.set_setting(_SCALE, save_arrays(scale.to_arrays()))

    def documents(self, texts: Sequence[str]) -> list[Array]:
        """Per text its vectors, [n, dim]."""
        return self._encoder.encode(texts)

    def query(self, text: str) -> Array:
        """The query side, [tokens, dim]."""
        return self._encoder.encode([text], "query")[0]
