"""From rankings to figures: metrics with intervals, paired differences, the ablation table; rankings in files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError, StorageError
from nnm_core.evaluation.baselines import BM25, BOTH, MINILM
from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.evaluation.metrics import per_query
from nnm_core.evaluation.retrieval import Rankings, as_run
from nnm_core.evaluation.retrieval_experiment import JUDGED, TUNED
from nnm_core.evaluation.statistics import Interval, bootstrap, paired_bootstrap
from nnm_core.recall.rerank import Evidence

REFERENCES = (BM25, MINILM, BOTH)
Values = Mapping[str, NDArray[np.float64]]

# (step, arm with it, arm without it). Steps whose arms were not run are left out.
STEPS: tuple[tuple[str, str, str], ...] = (
    ("headline counts twice", "sparse words, headline", "sparse words"),
    ("runs of characters", "sparse", "sparse words, headline"),
    ("token pieces in their place", "sparse words, headline, pieces", "sparse words, headline"),
    ("LM-head expansion of queries", "sparse + LM-head expansion", "sparse"),
    ("LM-head expansion of documents", "sparse + document expansion", "sparse"),
    ("whitening", "dense one-pass, whitened", "dense one-pass"),
    ("re-routing in one pass", "dense one-pass, whitened", "dense off, whitened"),
    ("re-routing in two passes", "dense two-pass, whitened", "dense off, whitened"),
    ("chosen layers", "dense chosen layers, whitened", "dense one-pass, whitened"),
    ("8 bits, dense", "dense, 8 bits", "dense one-pass, whitened"),
    ("dense beside sparse", "hybrid", "sparse"),
    ("8 bits, hybrid", "hybrid, 8 bits", "hybrid"),
    ("8 bits, hybrid of equal parts", "hybrid, equal RSF, 8 bits", "hybrid, equal RSF"),
    ("token level (MaxSim)", "hybrid + tokens", "hybrid"),
    ("8 bits, token level", "tokens (MaxSim) alone, 8 bits", "tokens (MaxSim) alone"),
    ("query likelihood on states", "hybrid + likelihood", "hybrid"),
    ("attention on states", "hybrid + attention", "hybrid"),
    ("both", "hybrid + both", "hybrid"),
    ("both, weights from own sentences", TUNED, "hybrid"),
    ("both, weights from judged queries", JUDGED, "hybrid"),
)


@dataclass(frozen=True)
class ArmResult:
    """One arm's figures.

    Attributes:
        name: of the arm.
        means: by metric.
        interval: of nDCG@10.
        differences: to the references that were run, paired by query, nDCG@10.
        per_query: nDCG@10 of each query.
    """

    name: str
    means: Mapping[str, float]
    interval: Interval
    differences: Mapping[str, Interval]
    per_query: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """What stands under ``arms`` in JSON files."""
        return {
            **self.means,
            "ndcg@10_interval": [self.interval.low, self.interval.high],
            **{f"ndcg@10_minus_{name}": asdict(found) for name, found in self.differences.items()},
            "ndcg@10_per_query": [round(float(value), 4) for value in self.per_query],
        }


def measured(data: RetrievalSet, arms: Mapping[str, Rankings]) -> list[ArmResult]:
    """Figures of all arms, in order."""
    values = {name: per_query(data.qrels, as_run(rankings)) for name, rankings in arms.items()}
    references = [name for name in REFERENCES if name in values]
    return [_result(name, found, {r: values[r] for r in references}) for name, found in values.items()]


def _result(name: str, found: Values, references: Mapping[str, Values]) -> ArmResult:
    score = found["ndcg@10"]
    return ArmResult(
        name,
        {metric: float(np.mean(column)) for metric, column in found.items()},
        bootstrap(score),
        {other: paired_bootstrap(score, values["ndcg@10"]) for other, values in references.items() if other != name},
        score,
    )


def ablation(results: Sequence[ArmResult]) -> dict[str, Interval]:
    """What each step brings: the paired difference in nDCG@10 of the arms with and without it."""
    known = {result.name: result.per_query for result in results}
    return {
        step: paired_bootstrap(known[with_it], known[without])
        for step, with_it, without in STEPS
        if with_it in known and without in known
    }


def save_runs(path: Path, runs: Mapping[str, Mapping[str, Rankings]], config: Mapping[str, Any]) -> None:
    """Write rankings (set -> arm -> query -> (document, score) pairs) and how they were made, as gzipped JSON.

    Raises:
        StorageError: the file cannot be written.
    """
    rounded = {
        name: {
            arm: {query: [[key, round(float(score), 5)] for key, score in ranking] for query, ranking in found.items()}
            for arm, found in arms.items()
        }
        for name, arms in runs.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
            json.dump({"config": config, "runs": rounded}, file, default=str)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}.", hint="Name another file.") from error


def save_evidence(path: Path, evidence: Mapping[str, Mapping[str, Evidence]], first: Rankings) -> None:
    """Write what the states said about every candidate, as compressed npz: the key of a query is its id.

    Per query ``<id>/names`` [n], ``<id>/first`` [n] (scores of the first stage), ``<id>/likelihood`` [n], its parts
    ``<id>/gains`` [n, query tokens] and their weights ``<id>/surprise`` [query tokens], and ``<id>/attention``
    [n, heads], half precision: other weights can be tried on them without the model.

    Args:
        path: of the file.
        evidence: of the first candidates of each query.
        first: the rankings that these are of.

    Raises:
        StorageError: the file cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for query, seen in evidence.items():
        arrays[f"{query}/names"] = np.array(list(seen))
        scores = dict(first[query])
        arrays[f"{query}/first"] = np.array([scores[name] for name in seen], np.float32)
        arrays[f"{query}/likelihood"] = np.array([e.likelihood for e in seen.values()], np.float32)
        arrays[f"{query}/gains"] = np.stack([e.gains for e in seen.values()]).astype(np.float16)
        arrays[f"{query}/surprise"] = next(iter(seen.values())).surprise.astype(np.float16)
        arrays[f"{query}/attention"] = np.stack([e.attention for e in seen.values()]).astype(np.float16)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}.", hint="Name another file.") from error


def load_runs(path: Path) -> tuple[dict[str, dict[str, Rankings]], dict[str, Any]]:
    """Read what `save_runs` wrote.

    Raises:
        InvalidInputError: no such file, or another kind of file.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = json.load(file)
        runs: dict[str, dict[str, Rankings]] = {
            name: {
                arm: {q: [(str(key), float(score)) for key, score in ranking] for q, ranking in rankings.items()}
                for arm, rankings in arms.items()
            }
            for name, arms in found["runs"].items()
        }
        return runs, dict(found["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} holds no saved rankings: {error!r}.", hint="Write one with --save-runs."
        ) from error
