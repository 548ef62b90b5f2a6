"""NNM as models of `mteb` (2.x): its vectors alone, and its whole search, on any retrieval task that mteb can load.

    import mteb
    from nnm_core.evaluation.mteb_models import MtebSearch

    mteb.evaluate(MtebSearch("nnm-mini"), mteb.get_tasks(["SciFact"]))

Nothing here imports mteb but the model's description, which mteb asks for; `pip install mteb` is enough for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.prompts import EmbeddingRole
from nnm_core.engine import NNM
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.beir import document_text
from nnm_core.model.load import LoadedModel, ModelSettings, load_model

Vectors = NDArray[np.float32]
Row = Mapping[str, Any]
# Where a memory's own id stands in its metadata, so that a filter can name it.
_ID = "mteb_id"


class MtebEncoder:
    """mteb's ``EncoderProtocol``: the raw KV-embeddings, compared by cosine.

    mteb encodes queries and documents apart and in any order, so nothing can be fitted on the documents here: there is
    no whitening. `MtebSearch` has it.

    Args:
        model_name: ``nnm-mini``, a folder or hub name, or a model that is loaded already.
        revision: of a hub model.
        device: ``cpu``, ``cuda`` ...
        settings: further fields of `ModelSettings`.

    Raises:
        ModelNotFoundError, UnsupportedModelError: the model cannot be had or cannot be used.
    """

    def __init__(
        self,
        model_name: str | LoadedModel = "nnm-mini",
        revision: str | None = None,
        *,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        self._model = _loaded(model_name, revision, device, settings)
        self._embedder = KVEmbedder(self._model)

    def encode(self, inputs: Iterable[Row], *, prompt_type: Any = None, **task: Any) -> Vectors:
        """Unit vectors [texts, dim] of mteb's batches, ``{"text": [...], ...}``.

        Args:
            inputs: mteb's data loader.
            prompt_type: ``query`` gives the query role, everything else the context role.
            **task: what else mteb says about the task; nothing depends on it.

        Raises:
            InvalidInputError: a batch without texts.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InvalidInputError("A batch has no texts.", hint="NNM reads text; pictures and sound it cannot.")
            texts += [str(text) for text in batch["text"]]
        role: EmbeddingRole = "query" if str(getattr(prompt_type, "value", prompt_type)) == "query" else "context"
        return self._embedder.encode(texts, role)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> torch.Tensor:
        """Cosines of all pairs, [n, m]."""
        return _units(embeddings1) @ _units(embeddings2).T

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> torch.Tensor:
        """Cosines row by row, [n]."""
        return (_units(embeddings1) * _units(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model."""
        return _meta(self._model, "embeddings", self._embedder.dim)


class MtebSearch:
    """mteb's ``SearchProtocol``: an `NNM` namespace that a task's documents are added to and searched in.

    Args:
        model_name: as of `MtebEncoder`.
        revision: of a hub model.
        device: ``cpu``, ``cuda`` ...
        rerank: read every query over the candidates' states. States are kept as token ids only and read again when
            they are needed, so that a task of any size fits; slow on a CPU.
        tune: choose heads and weights for re-ranking on the documents' own sentences first.
        settings: further fields of `ModelSettings`.
    """

    def __init__(
        self,
        model_name: str | LoadedModel = "nnm-mini",
        revision: str | None = None,
        *,
        device: str | None = None,
        rerank: bool = False,
        tune: bool = True,
        **settings: Any,
    ) -> None:
        self._model = _loaded(model_name, revision, device, settings)
        self._rerank, self._tune = rerank, rerank and tune
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._nnm: NNM | None = None

    def index(self, corpus: Iterable[Row], **task: Any) -> None:
        """Add the documents, rows with ``id``, ``text`` and perhaps ``title``; those of an earlier task go.

        Documents without a letter are left out: there is nothing to find them by.
        """
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="nnm-mteb-")
        self._nnm = NNM.open(self._model, self._folder.name, codec="tokens")
        rows = [(str(row["id"]), document_text(row)) for row in corpus]
        rows = [(key, text) for key, text in rows if text]
        ids = [key for key, _ in rows]
        self._nnm.add([text for _, text in rows], ids=ids, metadatas=[{_ID: key} for key in ids])
        if self._tune:
            self._nnm.tune()

    def search(
        self, queries: Iterable[Row], *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **task: Any
    ) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score, of the best `top_k` documents.

        Args:
            queries: rows with ``id`` and ``text``.
            top_k: documents a query.
            top_ranked: query id -> the documents that may be found, in mteb's re-ranking tasks.
            **task: what else mteb says about the task.

        Raises:
            InvalidInputError: `index` has not been called.
        """
        if self._nnm is None:
            raise InvalidInputError("There is nothing to search in.", hint="Call index(corpus) first.")
        found: dict[str, dict[str, float]] = {}
        for row in queries:
            key = str(row["id"])
            allowed = None if top_ranked is None else {_ID: {"$in": list(top_ranked.get(key, ()))}}
            hits = self._nnm.search(str(row["text"]), k=top_k, filter=allowed, rerank=self._rerank)
            found[key] = {hit.memory.id: hit.score for hit in hits}
        return found

    def close(self) -> None:
        """Remove the namespace; `index` begins another."""
        if self._nnm is not None:
            self._nnm.close()
            self._nnm = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model."""
        return _meta(self._model, "search, re-ranked" if self._rerank else "search", None)


def _loaded(
    model: str | LoadedModel, revision: str | None, device: str | None, settings: Mapping[str, Any]
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    return load_model(model, ModelSettings(device=device, revision=revision, **settings))


def _units(vectors: ArrayLike) -> torch.Tensor:
    rows = torch.atleast_2d(torch.as_tensor(vectors, dtype=torch.float32))
    return torch.nn.functional.normalize(rows, dim=-1)


def _meta(model: LoadedModel, how: str, dim: int | None) -> Any:
    try:
        description = import_module("mteb.models.model_meta")
    except ImportError as error:
        raise InvalidInputError("mteb is not installed.", hint="pip install 'mteb>=2'") from error
    name = f"nnm/{model.name.rstrip('/').split('/')[-1]} ({how})"
    return description.ModelMeta.create_empty(
        {"name": name, "embed_dim": dim, "max_tokens": model.context_limit, "framework": ["PyTorch"]}
    )
