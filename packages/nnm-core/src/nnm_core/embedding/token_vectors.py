"""Token level: several vectors a text, compared by MaxSim (Khattab & Zaharia 2020), out of one frozen decoder.

    MaxSim(q, d) = sum_i max_j cos(q_i, d_j)

The vectors are the states behind one layer of the embedding pass, of the text's own tokens only: special tokens,
punctuation and the instruction are left out. Each axis is brought to mean 0 and deviation 1 by a scale that is fitted
once, on documents, and then kept: token vectors are too many to be made anew. A text of more tokens than `most` is cut
into `most` spans of neighbouring tokens, whose vectors are averaged; queries keep all their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnm_core.embedding.kv_embedding import EncoderModel, KVEmbedder, batches
from nnm_core.embedding.pairs import SelfLabel
from nnm_core.embedding.prompts import EmbeddingRole, Window
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.errors import InvalidInputError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class TokenSettings:
    """How a text becomes token vectors; stored with the collection.

    Attributes:
        layer: whose output is taken, counted like a Python index over the layers.
        most: vectors of one document at most.
    """

    layer: int = -1
    most: int = 64

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InvalidInputError("A document needs at least one token vector.", hint="TokenSettings(most=64)")

    def to_dict(self) -> dict[str, Any]:
        """JSON-like values; `TokenSettings(**values)` reads them back."""
        return asdict(self)


@dataclass(frozen=True)
class TokenScale:
    """Mean and deviation of each axis over the tokens of documents.

    Attributes:
        mean: [dim].
        deviation: [dim], above 0.
        tokens: how many it was fitted on.
    """

    mean: Array
    deviation: Array
    tokens: int

    @classmethod
    def fit(cls, rows: Sequence[Array]) -> TokenScale:
        """Fit on raw token vectors, [tokens, dim] a document.

        Raises:
            InvalidInputError: fewer than two tokens.
        """
        stacked = np.concatenate(list(rows)) if rows else np.zeros((0, 0), np.float32)
        if len(stacked) < 2:
            raise InvalidInputError("A scale needs at least two tokens.", hint="Give it some documents.")
        deviation = stacked.std(axis=0)
        return cls(stacked.mean(axis=0), np.maximum(deviation, 1e-3 * float(deviation.mean()) + 1e-12), len(stacked))

    def apply(self, rows: Array) -> Array:
        """Unit vectors [n, dim] of raw ones."""
        scaled = (rows - self.mean) / self.deviation
        made: Array = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        return made

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for safetensors."""
        return {"mean": self.mean, "deviation": self.deviation, "tokens": np.array([self.tokens], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TokenScale:
        """Read what `to_arrays` gave."""
        return cls(arrays["mean"], arrays["deviation"], int(arrays["tokens"][0]))


class TokenEncoder:
    """Token vectors of texts.

    Args:
        model: the loaded model.
        settings: see `TokenSettings`.
        scale: fitted on documents; None gives raw vectors.
        embedding: prompt, window and batch size; re-routing is left out.
    """

    def __init__(
        self,
        model: EncoderModel,
        settings: TokenSettings | None = None,
        scale: TokenScale | None = None,
        *,
        embedding: EmbeddingSettings | None = None,
    ) -> None:
        self.settings = settings or TokenSettings()
        self.scale = scale
        self._model = model
        self._embedder = KVEmbedder(model, replace(embedding or EmbeddingSettings(), route="off"))
        self.dim = self._embedder.dim
        self._counts = lru_cache(maxsize=1 << 18)(self._says_something)

    def with_scale(self, scale: TokenScale) -> TokenEncoder:
        """The same encoder with a fitted scale."""
        return TokenEncoder(self._model, self.settings, scale, embedding=self._embedder.settings)

    def encode(self, texts: Sequence[str], role: EmbeddingRole = "context") -> list[Array]:
        """Per text its vectors, float32 [n, dim] of unit length; at most `most` for the role ``context``.

        A text without a word has one vector all the same, the mean of whatever tokens it has.
        """
        raw = self.raw(texts, role)
        scaled = raw if self.scale is None else [self.scale.apply(rows) for rows in raw]
        most = self.settings.most if role == "context" else None
        return [rows if most is None else pooled(rows, most) for rows in scaled]

    def raw(self, texts: Sequence[str], role: EmbeddingRole = "context") -> list[Array]:
        """Per text the states of its tokens, float32 [tokens, dim], unscaled and not pooled."""
        return [rows[0] for rows in self.raw_layers(texts, role, [self.settings.layer])]

    @torch.inference_mode()
    def raw_layers(self, texts: Sequence[str], role: EmbeddingRole, layers: Sequence[int]) -> list[list[Array]]:
        """Per text and layer what `raw` gives for that layer."""
        windows = self._embedder.prompt.windows(texts, role, window=self._embedder.window)
        found: list[list[list[Array]]] = [[[] for _ in layers] for _ in texts]
        for batch in batches(windows, self._embedder.settings.tokens_per_batch):
            states = self._embedder.hidden_states(batch)[1:]
            for row, window in enumerate(batch):
                places = torch.tensor(self._places(window), device=states[0].device)
                for column, layer in enumerate(layers):
                    found[window.text][column].append(_rows(states[layer][row], places))
        return [[np.concatenate(parts) for parts in columns] for columns in found]

    def _places(self, window: Window) -> list[int]:
        """Where the window's tokens stand that say something; all of them if none does."""
        inside = range(window.start, window.stop)
        return [place for place in inside if self._counts(window.ids[place])] or list(inside) or [0]

    def _says_something(self, token: int) -> bool:
        text = str(self._model.tokenizer.decode([token], skip_special_tokens=True))
        return any(character.isalnum() or ord(character) > 127 for character in text)


def pooled(rows: Array, most: int) -> Array:
    """At most `most` unit vectors: means of spans of neighbouring rows, of nearly equal length."""
    if len(rows) <= most:
        return rows
    edges = np.linspace(0, len(rows), most + 1).astype(int)
    sums = np.add.reduceat(rows, edges[:-1], axis=0)
    made: Array = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return made


def max_sim(query: Array, document: Array) -> float:
    """sum_i max_j of the dot products of query vectors [q, dim] and document vectors [n, dim]."""
    return float((query @ document.T).max(axis=1).sum())


def choose_token_layer(encoder: TokenEncoder, labels: Sequence[SelfLabel]) -> tuple[int, dict[int, float]]:
    """The layer whose token vectors find own sentences' documents best, and each layer's mean reciprocal rank.

    Args:
        encoder: its layer does not matter.
        labels: own sentences; every one has to find its own rest among all rests.

    Raises:
        InvalidInputError: no own sentences.
    """
    if not labels:
        raise InvalidInputError("There is nothing to choose on.", hint="Some documents need three sentences or more.")
    layers = list(range(int(encoder._model.hf.config.get_text_config().num_hidden_layers)))
    documents = encoder.raw_layers([label.rest for label in labels], "context", layers)
    queries = encoder.raw_layers([label.query for label in labels], "query", layers)
    found = {layer: _self_retrieval(queries, documents, layer, encoder.settings.most) for layer in layers}
    return max(found, key=lambda layer: (found[layer], layer)), found


def _self_retrieval(queries: list[list[Array]], documents: list[list[Array]], layer: int, most: int) -> float:
    scale = TokenScale.fit([rows[layer] for rows in documents])
    held = [pooled(scale.apply(rows[layer]), most) for rows in documents]
    stacked = np.concatenate(held)
    starts = np.cumsum([0, *(len(rows) for rows in held[:-1])])
    total = 0.0
    for number, rows in enumerate(queries):
        similar = scale.apply(rows[layer]) @ stacked.T
        scores = np.maximum.reduceat(similar, starts, axis=1).sum(axis=0)
        total += 1 / float((scores >= scores[number]).sum())
    return total / len(queries)


def _rows(states: Tensor, places: Tensor) -> Array:
    made: Array = states[places].float().cpu().numpy()
    return made
