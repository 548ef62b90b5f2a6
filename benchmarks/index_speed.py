"""How fast is the embedded index with many memories, and does it find what an exact search finds?

    python benchmarks/index_speed.py --memories 100000 --json index_speed.json

Made-up memories: vectors in clusters (as embeddings are), texts of words drawn by Zipf's law. Dense, sparse and fused
search are timed, the fused one also with the embedding of the question; recall@10 is against exact search.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.evaluation.benchmark import environment, parser
from nnm_core.evaluation.report import write_json
from nnm_core.model.load import load_model
from nnm_core.recall.search import Searcher, SearchSettings
from nnm_core.storage.index import Point, VectorIndex, open_index

BATCH = 1000
CLUSTERS, SPREAD = 1000, 0.7
VOCABULARY, WORDS = 50_000, 60


def rows(count: int, dim: int, generator: np.random.Generator, centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors [count, dim] around the centres."""
    noise = generator.standard_normal((count, dim)).astype(np.float32) * SPREAD / np.sqrt(dim)
    made = centres[generator.integers(0, len(centres), count)] + noise
    unit: NDArray[np.float32] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def texts(count: int, generator: np.random.Generator, words: int = WORDS) -> list[str]:
    """Texts of made-up words, a few of which are frequent and most of which are rare."""
    drawn = np.minimum(generator.zipf(1.2, (count, words)), VOCABULARY)
    return [" ".join(_word(int(number)) for number in row) for row in drawn]


def _word(number: int) -> str:
    syllables = ("ba", "ke", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
    found = ""
    while number:
        number, place = divmod(number, len(syllables))
        found += syllables[place]
    return found


def fill(
    index: VectorIndex, vectors: NDArray[np.float32], documents: Sequence[str], words: SparseEncoder
) -> dict[str, float]:
    """Documents a second, sparse vectors included: stored and searchable, and with the graphs built too."""
    started = time.perf_counter()
    for start in range(0, len(documents), BATCH):
        part = slice(start, start + BATCH)
        index.upsert(list(_points(start, vectors[part], documents[part], words)))
    stored = time.perf_counter() - started
    tell(f"{len(documents)} memories stored in {stored:.0f} s; building the graphs")
    index.optimize()
    whole = time.perf_counter() - started
    tell(f"graphs built in {whole - stored:.0f} s")
    return {"documents_per_second": len(documents) / stored, "with_graphs_per_second": len(documents) / whole}


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _points(
    start: int, vectors: NDArray[np.float32], documents: Sequence[str], words: SparseEncoder
) -> Iterator[Point]:
    for number, (vector, text) in enumerate(zip(vectors, documents, strict=True), start=start):
        yield Point(_id(number), vector, words.document(text), payload={"id": str(number), "metadata": {}})


def _id(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def milliseconds(work: Callable[[int], Any], count: int) -> dict[str, float]:
    """Median and 99th percentile of `work`, called once a question after a few to warm up."""
    for number in range(min(5, count)):
        work(number)
    taken = []
    for number in range(count):
        started = time.perf_counter()
        work(number)
        taken.append(1000 * (time.perf_counter() - started))
    return {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}


def recall(index: VectorIndex, vectors: NDArray[np.float32], asked: NDArray[np.float32]) -> float:
    """Share of the ten nearest by exact search that the index finds."""
    found = 0
    for query in asked:
        nearest = {_id(int(place)) for place in np.argpartition(-(vectors @ query), 10)[:10]}
        found += len(nearest & {hit.id for hit in index.search_dense(query, limit=10)})
    return found / (10 * len(asked))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one index."""
    generator = np.random.default_rng(0)
    model = load_model(options.model)
    embedder = KVEmbedder(model)
    centres = generator.standard_normal((CLUSTERS, embedder.dim)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = rows(options.memories, embedder.dim, generator, centres)
    asked = rows(options.questions, embedder.dim, generator, centres)
    documents = texts(options.memories, generator)
    questions = texts(options.questions, generator, words=10)
    words = SparseEncoder(None, SparseSettings(average_length=WORDS))
    folder = Path(tempfile.mkdtemp(prefix="index-speed-"))
    try:
        index = open_index(folder / "index", namespace="speed", dim=embedder.dim, eight_bits=options.int8)
        ingest = fill(index, vectors, documents, words)
        settings = SearchSettings({"sparse": 1.0, "dense": 0.3})
        searcher = Searcher(index, dense=lambda text: embedder.encode([text], "query")[0], sparse=words.query)
        searcher.settings = settings
        arms: dict[str, dict[str, float]] = {
            "ingest": ingest,
            "dense": {
                **milliseconds(lambda n: index.search_dense(asked[n], limit=10), options.questions),
                "recall@10": recall(index, vectors, asked),
            },
            "sparse": milliseconds(
                lambda n: index.search_sparse(words.query(questions[n]), limit=10), options.questions
            ),
            "search, embedding excluded": milliseconds(
                lambda n: searcher.search(questions[n], 10, vector=asked[n]), options.questions
            ),
            "search, embedding included": milliseconds(lambda n: searcher.search(questions[n], 10), options.questions),
        }
        index.close()
        size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    arms["disk"] = {"megabytes": size / 1e6}
    config = {**environment(model), "memories": options.memories, "questions": options.questions, "int8": options.int8}
    return {"arms": arms, "config": config}


def main() -> None:
    """Run, print, write."""
    options = parser(__doc__ or "", repeats=1)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--memories", type=int, default=100_000)
    options.add_argument("--questions", type=int, default=200)
    options.add_argument("--int8", action="store_true", help="vectors in a byte a number")
    chosen = options.parse_args()
    result = run(chosen)
    print(f"{chosen.memories} memories, {chosen.questions} questions{', 8 bits' if chosen.int8 else ''}")
    for name, figures in result["arms"].items():
        print(f"{name:28}" + "  ".join(f"{key} {value:,.3f}" for key, value in figures.items()))
    write_json(chosen.json, result)


if __name__ == "__main__":
    main()
