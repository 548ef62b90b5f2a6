"""How well are the right memories found? Every part of recall alone and together, beside BM25 and MiniLM.

    python benchmarks/retrieval.py --data path/to/scifact --json retrieval.json

`--data` is a folder in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/test.tsv; each may be gzipped). What has to be
chosen is chosen on sentences of the documents themselves, before the queries are looked at; no judgement is used but
for the final figures. `--subset 50 250` repeats the small pool of the original project (50 queries, 250 documents).
Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnm_core.embedding.layers import profile_layers
from nnm_core.embedding.pairs import SelfLabel, self_labels
from nnm_core.embedding.settings import EmbeddingSettings, default_layers
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.evaluation import baselines
from nnm_core.evaluation.benchmark import environment, parser
from nnm_core.evaluation.datasets import RetrievalSet, load_beir
from nnm_core.evaluation.metrics import per_query
from nnm_core.evaluation.report import write_json
from nnm_core.evaluation.retrieval import (
    Rankings,
    StateSide,
    as_run,
    encode_set,
    first_stage_trials,
    fused,
    reranked,
)
from nnm_core.evaluation.statistics import bootstrap, paired_bootstrap
from nnm_core.model.load import LoadedModel, ModelSettings, load_model
from nnm_core.recall.exact import DenseSide, SparseSide
from nnm_core.recall.fusion import Ranking
from nnm_core.recall.rerank import RerankSettings, StateReranker
from nnm_core.recall.tuning import best_heads, head_name, head_scores, tune_first_stage, tune_rerank

LIMIT = 100
BASELINE = "bm25s (stemmed)"


class Experiment:
    """Fills `arms` (rankings by name) and `config` (what was chosen, and on what)."""

    def __init__(self, data: RetrievalSet, model: LoadedModel, options: argparse.Namespace) -> None:
        self.data, self.model, self.options = data, model, options
        self.arms: dict[str, Rankings] = {}
        self.config: dict[str, Any] = {
            "data": data.name,
            "documents": len(data.documents),
            "queries": len(data.queries),
        }
        self.labels: list[SelfLabel] = self_labels(list(data.documents.values()), options.labels)
        self._started = time.perf_counter()

    def tell(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.perf_counter() - self._started:6.0f} s] {text}", flush=True)

    def run(self) -> None:
        """Everything that was asked for, cheap parts first."""
        if self.options.baselines:
            self.tell("baselines")
            self.arms.update(baselines.rankings(self.data, LIMIT))
        self.sparse()
        self.dense()
        self.hybrid()
        if self.options.rerank:
            self.rerank()

    def sparse(self) -> None:
        """Token vectors, with and without the model's pieces."""
        self.tell("sparse vectors")
        for name, settings in (("sparse words", SparseSettings(piece_weight=0)), ("sparse", SparseSettings())):
            side = SparseSide.of(self.data.documents, SparseEncoder(self.model.tokenizer, settings))
            self.arms[name] = {key: side.rank(text, LIMIT) for key, text in self.data.queries.items()}
        self.sparse_side = side
        self.config["sparse"] = side.encoder.settings.to_dict()

    def dense(self) -> None:
        """Dense vectors: raw, whitened, re-routed."""
        base = EmbeddingSettings(layers=self._layers(), tokens_per_batch=self.options.batch)
        self.config["embedding"] = asdict(base)
        for route in self.options.routes:
            self.tell(f"dense vectors, route {route}")
            embedder, documents, queries = encode_set(self.data, self.model, replace(base, route=route))
            for whiten in (False, True):
                side = DenseSide.of(list(self.data.documents), embedder, documents, whiten=whiten)
                rankings = side.rank_all(queries, LIMIT)
                name = f"dense {route}{' whitened' if whiten else ''}"
                self.arms[name] = dict(zip(self.data.queries, rankings, strict=True))
            self.dense_side, self.dense_arm = side, name

    def _layers(self) -> tuple[int, ...]:
        if self.options.layers != "profile":
            numbers = self.options.layers
            count = self.model.hf.config.get_text_config().num_hidden_layers
            return default_layers(count) if numbers == "default" else tuple(int(n) for n in numbers.split(","))
        texts = [label.rest for label in self.labels]
        base = EmbeddingSettings(tokens_per_batch=self.options.batch)
        profile = profile_layers(self.model, texts, self.labels, settings=base, progress=self.tell)
        self.config["layer_profile"] = profile.to_dict()
        self.tell(profile.reason)
        return profile.chosen or profile.by_rule

    def hybrid(self) -> None:
        """Sparse and dense together, the weight found on own sentences."""
        words = [self.sparse_side.trial(label, LIMIT) for label in self.labels]
        self.trial_rankings = [
            self._shortened(label, ranking) for label, ranking in zip(self.labels, words, strict=True)
        ]
        if not self.options.routes:
            self.arms["hybrid"] = self.arms["sparse"]
            return
        self.tell("first-stage weight on own sentences")
        meaning = self.dense_side.trials(self.labels, LIMIT)
        choice = tune_first_stage(first_stage_trials(list(self.data.documents), self.labels, words, meaning))
        self.config["first_stage"] = asdict(choice)
        parts = {"sparse": self.arms["sparse"], "dense": self.arms[self.dense_arm]}
        self.arms["hybrid, equal RRF"] = fused(parts, {"sparse": 1.0, "dense": 1.0}, LIMIT, "rrf")
        self.arms["hybrid"] = fused(parts, choice.weights, LIMIT)

    def _shortened(self, label: SelfLabel, ranking: Ranking) -> Ranking:
        """The first few candidates of an own sentence; its own document is always among them."""
        gold = self.sparse_side.names[label.document]
        few = list(ranking[: self.options.trial_depth])
        if gold not in {name for name, _ in few}:
            few[-1] = (gold, dict(ranking)[gold])
        return few

    def rerank(self) -> None:
        """Likelihood and attention on stored states, alone and with the first stage."""
        side = StateSide(self.model, self.data.documents, tokens_per_pass=self.options.batch)
        settings = RerankSettings(cue=self.options.cue, depth=self.options.depth)
        trials = side.trials(self.labels, self.trial_rankings, settings, self.tell)
        scores = head_scores(trials)
        columns = best_heads(scores, self.options.heads)
        per_layer = self.model.hf.config.get_text_config().num_attention_heads
        heads = tuple(head_name(column, per_layer) for column in columns)
        choice = tune_rerank(trials, sorted(columns))
        self.config["rerank"] = {
            "heads": {f"{layer}.{head}": float(scores[c]) for (layer, head), c in zip(heads, columns, strict=True)},
            "weights": choice.weights,
            "own_sentences": {"score": choice.score, "first_stage": choice.baseline, "trials": choice.trials},
            "tried": choice.tried,
            "cue": self.options.cue,
            "depth": self.options.depth,
        }
        self.tell(f"heads {heads}, weights {dict(choice.weights)}: {choice.baseline:.3f} -> {choice.score:.3f}")
        first = self.arms["hybrid"]
        candidates = {key: ranking[: self.options.depth] for key, ranking in first.items()}
        reranker = StateReranker(self.model, side.left, replace(settings, heads=heads))
        evidence = side.gather(candidates, self.data.queries, reranker, self.tell)
        weights = dict(choice.weights)
        arms: dict[str, Mapping[str, float]] = {
            "likelihood alone": {"likelihood": 1.0},
            "attention alone": {"attention": 1.0},
            "likelihood + attention": {"likelihood": 1.0, "attention": 1.0},
            "hybrid + likelihood": {"first": 1.0, "likelihood": 0.5},
            "hybrid + attention": {"first": 1.0, "attention": 0.5},
            "hybrid + both": {"first": 1.0, "likelihood": 0.25, "attention": 0.25},
            "hybrid + both, tuned": weights,
        }
        for name, says in arms.items():
            self.arms[name] = reranked(first, evidence, says)


def report(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Metrics of all arms with intervals; prints the table."""
    data = experiment.data
    values = {name: per_query(data.qrels, as_run(rankings)) for name, rankings in experiment.arms.items()}
    reference = BASELINE if BASELINE in values else "sparse words"
    print(f"\n{data.name}: {len(data.documents)} documents, {len(data.queries)} queries; differences to {reference}")
    print(f"{'arm':26} {'nDCG@10':>8}  {'95 %':>15} {'difference':>11}  {'95 %':>17} {'R@100':>6} {'MRR@10':>7}")
    result: dict[str, dict[str, Any]] = {}
    for name, found in values.items():
        own = bootstrap(found["ndcg@10"])
        versus = paired_bootstrap(found["ndcg@10"], values[reference]["ndcg@10"])
        means = {metric: float(np.mean(column)) for metric, column in found.items()}
        result[name] = {
            **means,
            "ndcg@10_interval": [own.low, own.high],
            f"ndcg@10_minus_{reference}": asdict(versus),
            "ndcg@10_per_query": [round(float(value), 4) for value in found["ndcg@10"]],
        }
        print(
            f"{name:26} {own.mean:8.4f}  [{own.low:.3f}, {own.high:.3f}] {versus.mean:+11.4f}  "
            f"[{versus.low:+.3f}, {versus.high:+.3f}] {means['recall@100']:6.3f} {means['mrr@10']:7.3f}"
        )
    return result


def arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__ or "", repeats=1)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--data", type=Path, required=True, help="folder in BEIR's layout")
    options.add_argument("--split", default="test")
    options.add_argument("--subset", type=int, nargs=2, metavar=("QUERIES", "DOCUMENTS"))
    options.add_argument("--queries", type=int, help="only the first so many queries, on all documents")
    options.add_argument("--dtype", default=None, help="float32, bfloat16; chosen for you if left out")
    options.add_argument(
        "--routes", nargs="*", default=["off", "one-pass"], help="of off, two-pass, one-pass; the last is used"
    )
    options.add_argument("--layers", default="default", help="numbers like 7,8; default; or profile to choose them")
    options.add_argument("--labels", type=int, default=100, help="own sentences to choose on")
    options.add_argument("--trial-depth", type=int, default=10, help="candidates of each own sentence")
    options.add_argument("--depth", type=int, default=50, help="candidates that are re-ranked")
    options.add_argument("--heads", type=int, default=8, help="attention heads that count")
    options.add_argument("--cue", default="", help="text before the query in re-ranking")
    options.add_argument("--batch", type=int, default=4096, help="tokens of a forward pass")
    options.add_argument("--no-baselines", dest="baselines", action="store_false")
    options.add_argument("--no-rerank", dest="rerank", action="store_false")
    return options.parse_args()


def main() -> None:
    """Run, print, write."""
    options = arguments()
    data = load_beir(options.data, options.split)
    if options.subset:
        data = data.subset(*options.subset)
    if options.queries:
        data = data.subset(options.queries, len(data.documents))
    model = load_model(options.model, ModelSettings(device=options.device, dtype=options.dtype))
    experiment = Experiment(data, model, options)
    experiment.run()
    arms = report(experiment)
    config = {**environment(model), **experiment.config, "seconds": time.perf_counter() - experiment._started}
    write_json(options.json, {"arms": arms, "config": config})


if __name__ == "__main__":
    main()
