"""One retrieval experiment: every part of recall alone and together, beside the baselines, on the same queries.

What has to be chosen (re-routed layers, token layer, weights, heads) is chosen on sentences of the documents
themselves, before a query of the set is looked at. No judgement is used but for the final figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from nnm_core.embedding.expansion import Expander, weighted
from nnm_core.embedding.layers import profile_layers
from nnm_core.embedding.pairs import SelfLabel, self_labels
from nnm_core.embedding.settings import EmbeddingSettings, Route, default_layers
from nnm_core.embedding.token_vectors import TokenEncoder, TokenScale, TokenSettings, choose_token_layer, max_sim
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.evaluation import baselines
from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.evaluation.judged_tuning import tune_on_judgements
from nnm_core.evaluation.retrieval import EncodedSet, Rankings, StateSide, first_stage_trials, fused, reranked
from nnm_core.model.load import LoadedModel
from nnm_core.recall.exact import DenseSide, SparseSide, eight_bits
from nnm_core.recall.fusion import Ranking
from nnm_core.recall.rerank import Evidence, RerankSettings, StateReranker
from nnm_core.recall.tuning import best_heads, head_name, head_scores, tune_first_stage, tune_rerank

Tell = Callable[[str], None]
LIMIT = 100
TUNED = "NNM (hybrid, re-ranked)"
JUDGED = "NNM (weights from judged queries)"
# What the most expected word of a text weighs when words are added to a query or a document; the others less.
EXPECTED_WEIGHT = 0.4


@dataclass(frozen=True)
class RetrievalOptions:
    """What an experiment does.

    Attributes:
        routes: of dense vectors, ``off``, ``two-pass``, ``one-pass``; the last one goes on into the hybrid.
        layers: of re-routing: ``default``, ``profile`` (chosen; measured beside the default), or numbers like "7,8".
        labels: own sentences that choices are made on.
        trial_depth: candidates that each of them is re-ranked among.
        depth: candidates that are re-ranked.
        heads: attention heads that count.
        cue: text before the query in re-ranking.
        batch: tokens of a forward pass.
        baselines: which of ``bm25`` and ``minilm`` to run.
        rerank: read queries over states.
        tokens: measure the token level.
        expansion: expected words that the language-model head adds to a query; 0 for none.
        document_expansion: words that it adds to every document, as doc2query does with a second model; 0 for none.
        all_heads: note the attention of every head in `Experiment.evidence`, for analysis.
    """

    routes: tuple[Route, ...] = ("off", "two-pass", "one-pass")
    layers: str = "default"
    labels: int = 100
    trial_depth: int = 10
    depth: int = 50
    heads: int = 8
    cue: str = RerankSettings().cue
    batch: int = 4096
    baselines: tuple[str, ...] = ("bm25", "minilm")
    rerank: bool = True
    tokens: bool = True
    expansion: int = 30
    document_expansion: int = 0
    all_heads: bool = False


class Experiment:
    """Fills `arms` (rankings by name) and `config` (what was chosen, and on what).

    Args:
        data: documents, queries and judgements.
        model: the reader.
        options: see `RetrievalOptions`.
        tell: told what is going on.
        judged: other queries on the same documents, with judgements that re-ranking weights may be chosen on.
        save: called with this object after every part: what is done is not lost if a later part is not finished.
    """

    def __init__(
        self,
        data: RetrievalSet,
        model: LoadedModel,
        options: RetrievalOptions | None = None,
        tell: Tell | None = None,
        *,
        judged: RetrievalSet | None = None,
        save: Callable[[Experiment], None] | None = None,
    ) -> None:
        self.data, self.model, self.options = data, model, options or RetrievalOptions()
        self.arms: dict[str, Rankings] = {}
        self.evidence: dict[str, dict[str, Evidence]] = {}
        self.judged = judged
        self.judged_first: Rankings = {}
        self.judged_evidence: dict[str, dict[str, Evidence]] = {}
        self.config: dict[str, Any] = {
            "data": data.name,
            "documents": len(data.documents),
            "queries": len(data.queries),
            "options": asdict(self.options),
            "seconds": {},
        }
        self.labels: list[SelfLabel] = self_labels(list(data.documents.values()), self.options.labels)
        self._tell = tell or (lambda _: None)
        self._save = save or (lambda _: None)

    def run(self) -> None:
        """Everything that was asked for: the search and what it stands on first, what is only compared to it last."""
        options = self.options
        parts: list[tuple[str, Callable[[], None], object]] = [
            ("baselines", self._baselines, options.baselines),
            ("sparse", self._sparse, True),
            ("dense", self._dense, options.routes),
            ("hybrid", self._hybrid, True),
            ("re-ranking", self._rerank, options.rerank),
            ("judged queries", self._rerank_as_judged, options.rerank and self.judged),
            ("expansion", self._expansion, options.expansion),
            ("document expansion", self._document_expansion, options.document_expansion),
            ("token level", self._token_level, options.tokens),
        ]
        for name, work, wanted in parts:
            if wanted:
                self._timed(name, work)

    def _timed(self, name: str, work: Callable[[], None]) -> None:
        self._tell(name)
        started = time.perf_counter()
        work()
        self.config["seconds"][name] = round(time.perf_counter() - started, 2)
        self._save(self)

    def _baselines(self) -> None:
        self.arms.update(baselines.rankings(self.data, LIMIT, self.options.baselines))

    # -- words ----------------------------------------------------------------------------------------------------

    def _sparse(self) -> None:
        variants = {
            "sparse words": SparseSettings(gram_weight=0, headline=0),
            "sparse words, headline": SparseSettings(gram_weight=0),
            "sparse words, headline, pieces": SparseSettings(gram_weight=0, piece_weight=0.25),
            "sparse": SparseSettings(),
        }
        for name, settings in variants.items():
            side = SparseSide.of(self.data.documents, SparseEncoder(self.model.tokenizer, settings))
            self.arms[name] = self._words_of(side, self.data.queries)
        self.sparse_side = side
        self.config["sparse"] = side.encoder.settings.to_dict()

    def _words_of(self, side: SparseSide, queries: Mapping[str, str]) -> Rankings:
        return {key: side.rank(text, LIMIT) for key, text in queries.items()}

    def _expansion(self) -> None:
        """Queries with the words that the model expects."""
        expander = Expander(self.model, self.sparse_side.encoder, self._embedding())
        found = expander.expand(list(self.data.queries.values()), "query", most=self.options.expansion)
        rankings: dict[str, Ranking] = {}
        for (key, text), words in zip(self.data.queries.items(), found, strict=True):
            rankings[key] = self.sparse_side.rank(text, LIMIT, expected=weighted(words, EXPECTED_WEIGHT))
        self.arms["sparse + LM-head expansion"] = rankings

    def _document_expansion(self) -> None:
        """Documents with the words that the model expects in them."""
        encoder = self.sparse_side.encoder
        texts = list(self.data.documents.values())
        found = Expander(self.model, encoder, self._embedding()).expand(
            texts, "context", most=self.options.document_expansion
        )
        expected = [weighted(words, EXPECTED_WEIGHT) for words in found]
        side = SparseSide.of(self.data.documents, encoder, expected)
        self.arms["sparse + document expansion"] = self._words_of(side, self.data.queries)

    # -- dense vectors --------------------------------------------------------------------------------------------

    def _embedding(self) -> EmbeddingSettings:
        return EmbeddingSettings(tokens_per_batch=self.options.batch)

    def _dense(self) -> None:
        count = int(self.model.hf.config.get_text_config().num_hidden_layers)
        default = default_layers(count)
        base = replace(self._embedding(), layers=default)
        if self.options.layers not in ("default", "profile"):
            base = replace(base, layers=tuple(int(number) for number in self.options.layers.split(",")))
        for route in self.options.routes:
            self._dense_arm(f"dense {route}", replace(base, route=route))
        if self.options.layers == "profile":
            profile = profile_layers(
                self.model, [label.rest for label in self.labels], self.labels, settings=base, progress=self._tell
            )
            self.config["layer_profile"] = profile.to_dict()
            self._tell(profile.reason)
            if profile.chosen and profile.chosen != default:
                self._dense_arm("dense chosen layers", replace(base, layers=profile.chosen))
        self.config["embedding"] = asdict(self.dense_side.embedder.settings)
        rounded = replace(self.dense_side, vectors=eight_bits(self.dense_side.vectors))
        self.arms["dense, 8 bits"] = self._ranked(rounded)

    def _dense_arm(self, name: str, settings: EmbeddingSettings) -> None:
        made = EncodedSet.of(self.data, self.model, settings)
        self._raw_queries = made.queries
        for suffix, whiten in (("", False), (", whitened", True)):
            side = DenseSide.of(list(self.data.documents), made.embedder, made.documents, whiten=whiten)
            self.arms[name + suffix] = self._ranked(side)
        self.dense_side, self.dense_arm = side, f"{name}, whitened"

    def _ranked(self, side: DenseSide) -> Rankings:
        return dict(zip(self.data.queries, side.rank_all(self._raw_queries, LIMIT), strict=True))

    # -- together -------------------------------------------------------------------------------------------------

    def _hybrid(self) -> None:
        """Sparse and dense together, the weight found on own sentences."""
        self._words = [self.sparse_side.trial(label, LIMIT) for label in self.labels]
        self._first_weights: Mapping[str, float] = {"sparse": 1.0}
        if not self.options.routes or not self.labels:
            self.arms["hybrid"] = self.arms["sparse"]
            return
        meaning = self.dense_side.trials(self.labels, LIMIT)
        choice = tune_first_stage(first_stage_trials(list(self.data.documents), self.labels, self._words, meaning))
        self.config["first_stage"] = asdict(choice)
        parts = {"sparse": self.arms["sparse"], "dense": self.arms[self.dense_arm]}
        equal = {"sparse": 1.0, "dense": 1.0}
        self.arms["hybrid, equal RRF"] = fused(parts, equal, LIMIT, "rrf")
        self.arms["hybrid, equal RSF"] = fused(parts, equal, LIMIT)
        self.arms["hybrid"] = fused(parts, choice.weights, LIMIT)
        eight = {"sparse": self.arms["sparse"], "dense": self.arms["dense, 8 bits"]}
        self.arms["hybrid, 8 bits"] = fused(eight, choice.weights, LIMIT)
        self.arms["hybrid, equal RSF, 8 bits"] = fused(eight, equal, LIMIT)
        self._first_weights = choice.weights

    def _first_stage(self, queries: Mapping[str, str]) -> Rankings:
        """The hybrid's rankings of other queries."""
        words = self._words_of(self.sparse_side, queries)
        if not self._first_weights.get("dense"):
            return words
        vectors = self.dense_side.embedder.encode(list(queries.values()), "query")
        meaning = dict(zip(queries, self.dense_side.rank_all(vectors, LIMIT), strict=True))
        return fused({"sparse": words, "dense": meaning}, self._first_weights, LIMIT)

    def _token_level(self) -> None:
        """MaxSim over the hybrid's candidates; layer and weight found on own sentences."""
        if not self.labels:
            return
        layer, tried = choose_token_layer(TokenEncoder(self.model, embedding=self._embedding()), self.labels)
        encoder = TokenEncoder(self.model, TokenSettings(layer), embedding=self._embedding())
        encoder = encoder.with_scale(TokenScale.fit(encoder.raw([label.rest for label in self.labels])))
        names = list(self.data.documents)
        vectors = dict(zip(names, encoder.encode(list(self.data.documents.values())), strict=True))
        choice = self._token_weight(encoder, vectors)
        self.config["tokens"] = {**encoder.settings.to_dict(), "tried": tried, "choice": asdict(choice)}
        asked = encoder.encode(list(self.data.queries.values()), "query")
        alone = self._max_sim(asked, vectors)
        self.arms["tokens (MaxSim) alone"] = alone
        rounded = {name: eight_bits(rows) for name, rows in vectors.items()}
        self.arms["tokens (MaxSim) alone, 8 bits"] = self._max_sim(asked, rounded)
        parts = {"sparse": self.arms["hybrid"], "dense": alone}
        self.arms["hybrid + tokens"] = fused(parts, choice.weights, LIMIT)

    def _max_sim(self, asked: list[Any], vectors: Mapping[str, Any]) -> Rankings:
        result: dict[str, Ranking] = {}
        for (key, ranking), query in zip(self.arms["hybrid"].items(), asked, strict=True):
            scored = [(name, max_sim(query, vectors[name])) for name, _ in ranking]
            result[key] = sorted(scored, key=lambda pair: (-pair[1], pair[0]))
        return result

    def _token_weight(self, encoder: TokenEncoder, vectors: Mapping[str, Any]) -> Any:
        queries = encoder.encode([label.query for label in self.labels], "query")
        rests = encoder.encode([label.rest for label in self.labels])
        names, similar = list(self.data.documents), []
        for label, words, query, rest in zip(self.labels, self._words, queries, rests, strict=True):
            gold = names[label.document]
            scored = [(name, max_sim(query, rest if name == gold else vectors[name])) for name, _ in words]
            similar.append(sorted(scored, key=lambda pair: (-pair[1], pair[0])))
        return tune_first_stage(first_stage_trials(names, self.labels, self._words, similar))

    # -- states ---------------------------------------------------------------------------------------------------

    def _rerank(self) -> None:
        """Likelihood and attention on stored states, alone and with the first stage."""
        options = self.options
        side = StateSide(self.model, self.data.documents, tokens_per_pass=options.batch)
        settings = RerankSettings(cue=options.cue, depth=options.depth, tokens_per_batch=max(options.batch, 16384))
        settings = self._tuned(side, settings)
        first = self.arms["hybrid"]
        self._reranking = (side, settings)
        self.evidence = self._asked(self.data.queries, first)
        evidence = self._of_heads(self.evidence)
        arms: dict[str, Mapping[str, float]] = {
            "likelihood alone": {"likelihood": 1.0},
            "attention alone": {"attention": 1.0},
            "likelihood + attention": {"likelihood": 1.0, "attention": 1.0},
            "hybrid + likelihood": {"first": 1.0, "likelihood": 0.3},
            "hybrid + attention": {"first": 1.0, "attention": 0.3},
            "hybrid + both": {"first": 1.0, "likelihood": 0.3, "attention": 0.3},
            TUNED: settings.weights,
        }
        for name, says in arms.items():
            self.arms[name] = reranked(first, evidence, says)

    def _asked(self, queries: Mapping[str, str], first: Rankings) -> dict[str, dict[str, Evidence]]:
        """What the states of the first candidates say about queries; of every head if all are noted."""
        side, settings = self._reranking
        candidates = {key: ranking[: self.options.depth] for key, ranking in first.items()}
        reranker = StateReranker(self.model, side.left, settings, all_heads=self.options.all_heads)
        return side.gather(candidates, queries, reranker, self._tell)

    def _of_heads(self, evidence: Mapping[str, Mapping[str, Evidence]]) -> Mapping[str, Mapping[str, Evidence]]:
        """The evidence of the chosen heads only."""
        if not self.options.all_heads:
            return evidence
        columns = [layer * self._heads_per_layer + head for layer, head in self._reranking[1].heads]
        return {q: {name: e.of_heads(columns) for name, e in seen.items()} for q, seen in evidence.items()}

    @property
    def _heads_per_layer(self) -> int:
        return int(self.model.hf.config.get_text_config().num_attention_heads)

    def _rerank_as_judged(self) -> None:
        """Heads, weights and depth that are best for the judged queries, used on the set's own."""
        assert self.judged is not None
        self.judged_first = first = self._first_stage(self.judged.queries)
        self.judged_evidence = self._asked(self.judged.queries, first)
        choice = tune_on_judgements(first, self.judged_evidence, self.judged.qrels)
        self.config["judged"] = {"data": self.judged.name, **asdict(choice)}
        self._tell(f"judged: {choice.baseline:.4f} -> {choice.score:.4f} with {choice}")
        hybrid = self.arms["hybrid"]
        near = {
            query: {name: seen[name].of_heads(choice.heads) for name, _ in hybrid[query][: choice.depth]}
            for query, seen in self.evidence.items()
        }
        self.arms[JUDGED] = reranked(hybrid, near, choice.weights)

    def _tuned(self, side: StateSide, settings: RerankSettings) -> RerankSettings:
        """Heads and weights found on own sentences; the defaults where there are too few documents for that."""
        if not self.labels:
            return settings
        shortened = [self._shortened(label, words) for label, words in zip(self.labels, self._words, strict=True)]
        trials = side.trials(self.labels, shortened, settings, self._tell)
        scores = head_scores(trials)
        columns = best_heads(scores, self.options.heads)
        heads = tuple(head_name(column, self._heads_per_layer) for column in columns)
        choice = tune_rerank(trials, sorted(columns))
        self.config["rerank"] = {
            "heads": {f"{layer}.{head}": float(scores[c]) for (layer, head), c in zip(heads, columns, strict=True)},
            "weights": choice.weights,
            "own_sentences": {"score": choice.score, "first_stage": choice.baseline, "trials": choice.trials},
            "tried": choice.tried,
        }
        self._tell(f"weights {dict(choice.weights)}: own sentences {choice.baseline:.3f} -> {choice.score:.3f}")
        return replace(settings, heads=heads, weights=choice.weights)

    def _shortened(self, label: SelfLabel, ranking: Ranking) -> Ranking:
        """The first few candidates of an own sentence; its own document is always among them."""
        gold = self.sparse_side.names[label.document]
        few = list(ranking[: self.options.trial_depth])
        if gold not in {name for name, _ in few}:
            few[-1] = (gold, dict(ranking)[gold])
        return few
