"""One retrieval experiment: every part of recall alone and together, beside the baselines, on the same queries.

What has to be chosen (re-routed layers, token layer, weights, heads) is chosen on sentences of the documents
themselves, before a query of the set is looked at. No judgement is used but for the final figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from nnm_core.embedding.expansion import Expander
from nnm_core.embedding.layers import profile_layers
from nnm_core.embedding.pairs import SelfLabel, self_labels
from nnm_core.embedding.settings import EmbeddingSettings, Route, default_layers
from nnm_core.embedding.token_vectors import TokenEncoder, TokenScale, TokenSettings, choose_token_layer, max_sim
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.evaluation import baselines
from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.evaluation.retrieval import EncodedSet, Rankings, StateSide, first_stage_trials, fused, reranked
from nnm_core.model.load import LoadedModel
from nnm_core.recall.exact import DenseSide, SparseSide, eight_bits
from nnm_core.recall.fusion import Ranking
from nnm_core.recall.rerank import Evidence, RerankSettings, StateReranker
from nnm_core.recall.state_pass import StateView
from nnm_core.recall.tuning import best_heads, head_name, head_scores, tune_first_stage, tune_rerank

Tell = Callable[[str], None]
LIMIT = 100
TUNED = "NNM (hybrid, re-ranked)"


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
        keep_states: keep all states in the device's memory.
        all_heads: note the attention of every head in `Experiment.evidence`, for analysis.
    """

    routes: tuple[Route, ...] = ("off", "two-pass", "one-pass")
    layers: str = "default"
    labels: int = 100
    trial_depth: int = 10
    depth: int = 50
    heads: int = 8
    cue: str = ""
    batch: int = 4096
    baselines: tuple[str, ...] = ("bm25", "minilm")
    rerank: bool = True
    tokens: bool = True
    expansion: int = 30
    keep_states: bool = False
    all_heads: bool = False


class Experiment:
    """Fills `arms` (rankings by name) and `config` (what was chosen, and on what).

    Args:
        data: documents, queries and judgements.
        model: the reader.
        options: see `RetrievalOptions`.
        tell: told what is going on.
        states: states by text that another experiment with this model has kept.
    """

    def __init__(
        self,
        data: RetrievalSet,
        model: LoadedModel,
        options: RetrievalOptions | None = None,
        tell: Tell | None = None,
        states: dict[str, StateView] | None = None,
    ) -> None:
        self.data, self.model, self.options = data, model, options or RetrievalOptions()
        self.arms: dict[str, Rankings] = {}
        self.evidence: dict[str, dict[str, Evidence]] = {}
        self.config: dict[str, Any] = {
            "data": data.name,
            "documents": len(data.documents),
            "queries": len(data.queries),
            "options": asdict(self.options),
            "seconds": {},
        }
        self.states: dict[str, StateView] = {} if states is None else states
        self.labels: list[SelfLabel] = self_labels(list(data.documents.values()), self.options.labels)
        self._tell = tell or (lambda _: None)

    def run(self) -> None:
        """Everything that was asked for, cheap parts first."""
        if self.options.baselines:
            self._timed("baselines", self._baselines)
        self._timed("sparse", self._sparse)
        if self.options.expansion:
            self._timed("expansion", self._expansion)
        if self.options.routes:
            self._timed("dense", self._dense)
        self._timed("hybrid", self._hybrid)
        if self.options.tokens:
            self._timed("token level", self._token_level)
        if self.options.rerank:
            self._timed("re-ranking", self._rerank)

    def _timed(self, name: str, work: Callable[[], None]) -> None:
        self._tell(name)
        started = time.perf_counter()
        work()
        self.config["seconds"][name] = round(time.perf_counter() - started, 2)

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
            self.arms[name] = {key: side.rank(text, LIMIT) for key, text in self.data.queries.items()}
        self.sparse_side = side
        self.config["sparse"] = side.encoder.settings.to_dict()

    def _expansion(self) -> None:
        """Queries with the words that the model expects; the most expected one has weight 0.4, the others less."""
        expander = Expander(self.model, self.sparse_side.encoder, self._embedding())
        found = expander.expand(list(self.data.queries.values()), "query", most=self.options.expansion)
        rankings: dict[str, Ranking] = {}
        for (key, text), words in zip(self.data.queries.items(), found, strict=True):
            best = max(words.values(), default=1.0)
            weights = {word: 0.4 * value / best for word, value in words.items()}
            rankings[key] = self.sparse_side.rank(text, LIMIT, expected=weights)
        self.arms["sparse + LM-head expansion"] = rankings

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
        self.arms["dense, 8 bits"] = self._ranked(replace(self.dense_side, vectors=eight_bits(self.dense_side.vectors)))

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
        side = StateSide(
            self.model,
            self.data.documents,
            tokens_per_pass=options.batch,
            keep=options.keep_states,
            kept=self.states,
        )
        settings = RerankSettings(cue=options.cue, depth=options.depth, tokens_per_batch=max(options.batch, 16384))
        settings = self._tuned(side, settings)
        first = self.arms["hybrid"]
        candidates = {key: ranking[: options.depth] for key, ranking in first.items()}
        reranker = StateReranker(self.model, side.left, settings, all_heads=options.all_heads)
        self.evidence = side.gather(candidates, self.data.queries, reranker, self._tell)
        evidence = self._of_heads(settings) if options.all_heads else self.evidence
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

    def _of_heads(self, settings: RerankSettings) -> dict[str, dict[str, Evidence]]:
        """The evidence of the chosen heads only."""
        per_layer = int(self.model.hf.config.get_text_config().num_attention_heads)
        columns = [layer * per_layer + head for layer, head in settings.heads]
        return {
            query: {name: Evidence(e.likelihood, e.attention[columns], e.spread) for name, e in seen.items()}
            for query, seen in self.evidence.items()
        }

    def _tuned(self, side: StateSide, settings: RerankSettings) -> RerankSettings:
        """Heads and weights found on own sentences; the defaults where there are too few documents for that."""
        if not self.labels:
            return settings
        shortened = [self._shortened(label, words) for label, words in zip(self.labels, self._words, strict=True)]
        trials = side.trials(self.labels, shortened, settings, self._tell)
        scores = head_scores(trials)
        columns = best_heads(scores, self.options.heads)
        per_layer = int(self.model.hf.config.get_text_config().num_attention_heads)
        heads = tuple(head_name(column, per_layer) for column in columns)
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
