"""Terms that a text does not contain and the model expects: expansion of sparse vectors by the language-model head.

Every position of the embedding prompt predicts a next token; so does its end ("... in one word:", as in PromptEOL). The
expected terms of a text are the whole-word tokens v of highest

    e(v) = max_t P(v | x_1 .. x_t) over the text's positions and the end of the prompt

that neither occur in the text nor are stop words. The index's IDF, which is applied when they are searched for, takes
care of the words that a model expects everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nnm_core.embedding.kv_embedding import EncoderModel, KVEmbedder, batches
from nnm_core.embedding.prompts import EmbeddingRole
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.embedding.tokens import SparseEncoder
from nnm_core.errors import UnsupportedModelError

_SHORTEST = 3
# Candidates of one text before those that it contains are left out.
_CANDIDATES = 64


class Expander:
    """Expected terms of texts.

    Args:
        model: a decoder with a language-model head.
        sparse: decides what a word is, and which words are stop words.
        embedding: prompt, window and batch size; re-routing is left out.

    Raises:
        UnsupportedModelError: the model has no language-model head.
    """

    def __init__(self, model: EncoderModel, sparse: SparseEncoder, embedding: EmbeddingSettings | None = None) -> None:
        if model.hf.get_output_embeddings() is None:
            raise UnsupportedModelError("Expansion needs a language-model head; this model has none.")
        self._model = model
        self._sparse = sparse
        self._embedder = KVEmbedder(model, replace(embedding or EmbeddingSettings(), route="off"))

    @torch.inference_mode()
    def expand(self, texts: Sequence[str], role: EmbeddingRole = "query", *, most: int = 10) -> list[dict[str, float]]:
        """Per text up to `most` words with e(v), best first."""
        windows = self._embedder.prompt.windows(texts, role, window=self._embedder.window)
        best: list[dict[int, float]] = [{} for _ in texts]
        for batch in batches(windows, self._embedder.settings.tokens_per_batch):
            states = self._embedder.last_states(batch)
            for row, window in enumerate(batch):
                places = [*range(window.start, window.stop), len(window.ids) - 1]
                known = best[window.text]
                for token, value in self._expected(states[row, places]):
                    known[token] = max(value, known.get(token, 0.0))
        return [self._new_words(text, found, most) for text, found in zip(texts, best, strict=True)]

    def _expected(self, states: Tensor) -> list[tuple[int, float]]:
        head = self._model.hf.get_output_embeddings()
        expected = head(states).float().softmax(-1).amax(0)[self._whole]
        top = expected.topk(min(_CANDIDATES, len(expected)))
        return list(zip(self._whole[top.indices].tolist(), top.values.tolist(), strict=True))

    def _new_words(self, text: str, found: Mapping[int, float], most: int) -> dict[str, float]:
        known = set(self._sparse.document(text).indices.tolist())
        words: dict[str, float] = {}
        for token in sorted(found, key=lambda token: (-found[token], token)):
            word = self._words[token]
            if not set(self._sparse.term_of(word)) & known:
                words.setdefault(word, found[token])
            if len(words) == most:
                break
        return words

    @cached_property
    def _words(self) -> dict[int, str]:
        """The vocabulary's whole words: tokens that begin with a blank and are letters otherwise."""
        tokenizer = self._model.tokenizer
        special = set(tokenizer.all_special_ids)
        ids = [token for token in range(len(tokenizer)) if token not in special]
        pairs = zip(ids, tokenizer.batch_decode([[token] for token in ids]), strict=True)
        marks = dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
        return {
            token: text.strip().casefold()
            for token, text in pairs
            if str(marks[token])[:1] in ("\u0120", "\u2581", " ")
            and text.strip().isalpha()
            and len(text.strip()) >= _SHORTEST
            and text.strip().casefold() not in self._sparse.settings.stop_words
        }

    @cached_property
    def _whole(self) -> Tensor:
        return torch.tensor(np.array(sorted(self._words), np.int64), device=self._model.device)


def weighted(words: Mapping[str, float], most: float) -> dict[str, float]:
    """Expected words with weights in proportion to e(v); the most expected one gets `most`."""
    best = max(words.values(), default=1.0)
    return {word: most * value / best for word, value in words.items()}
