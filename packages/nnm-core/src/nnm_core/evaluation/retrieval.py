"""A whole retrieval experiment on one collection: every part of recall alone and together, on the same queries.

Everything that has to be chosen (re-routed layers, fusion weights, attention heads) is chosen on the documents alone,
before a query of the set is looked at. States are made for a block of documents at a time, so that collections whose
states do not fit the memory can be measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.pairs import SelfLabel
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.evaluation.datasets import RetrievalSet
from nnm_core.model.batching import in_halves, padded_batches
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import DEFAULT_SYSTEM, PromptFormat
from nnm_core.recall.fusion import Ranking, fuse
from nnm_core.recall.rerank import Evidence, RerankSettings, StateReranker, combine
from nnm_core.recall.state_pass import StateView
from nnm_core.recall.tuning import FirstStageTrial, RerankTrial
from nnm_core.states.capture import capture, place
from nnm_core.states.state import PlacedState

Vectors = NDArray[np.float32]
Rankings = Mapping[str, Ranking]
"""Query id -> ranking of document ids."""
Tell = Callable[[str], None]
_TOKENS_PER_BLOCK = 1 << 17
# Of a GPU's free memory, for states; the rest is for passes over them and for whatever else runs there.
_SHARE_OF_FREE = 0.4
# A state on a GPU keeps its keys unrotated, and rotated from the first use on.
_PLACED_TWICE = 1.5


@dataclass
class StateSide:
    """Makes states of documents behind the canonical left context and asks them about queries.

    Attributes:
        model: that makes the states.
        documents: id -> text.
        tokens_per_block: of documents whose states are in memory at the same time; None for as many as fit.
        tokens_per_pass: of one forward pass.
    """

    model: LoadedModel
    documents: Mapping[str, str]
    tokens_per_block: int | None = None
    tokens_per_pass: int = 4096
    left: PlacedState = field(init=False)
    format: PromptFormat = field(init=False)

    def __post_init__(self) -> None:
        self.format = PromptFormat(self.model.tokenizer)
        ids = self.format.left_context(DEFAULT_SYSTEM)
        self.left = place(self.model, capture(self.model, [ids])[0], 0)

    def states(self, texts: Sequence[str]) -> list[StateView]:
        """Placed states of texts, in order; a text too long for the model is read as far as it fits (7/8 of it)."""
        room = self.model.context_limit * 7 // 8 - self.left.length
        different = list(dict.fromkeys(texts))
        rows = [self.format.memory_ids(text)[:room] for text in different]
        made: dict[str, StateView] = {}
        for batch in padded_batches([len(row) for row in rows], self.tokens_per_pass):
            read = in_halves(lambda few: capture(self.model, [rows[i] for i in few], self.left), batch)
            made.update(
                (different[i], place(self.model, s, self.left.length)) for i, s in zip(batch, read, strict=True)
            )
        return [made[text] for text in texts]

    def gather(
        self, candidates: Rankings, queries: Mapping[str, str], reranker: StateReranker, tell: Tell
    ) -> dict[str, dict[str, Evidence]]:
        """Evidence of every (query, candidate) pair: a block of documents after the other, each for all its queries."""
        asking: dict[str, list[str]] = {}
        for query, ranking in candidates.items():
            for name, _ in ranking:
                asking.setdefault(name, []).append(query)

        def asked(block: Sequence[str]) -> list[dict[str, Evidence]]:
            """Per document what it says to each of its queries."""
            states = dict(zip(block, self.states([self.documents[name] for name in block]), strict=True))
            said: dict[str, dict[str, Evidence]] = {name: {} for name in block}
            for query in dict.fromkeys(query for name in block for query in asking[name]):
                mine = {name: states[name] for name, _ in candidates[query] if name in states}
                for name, evidence in reranker.evidence(queries[query], mine).items():
                    said[name][query] = evidence
            return list(said.values())

        said: dict[str, dict[str, Evidence]] = {}
        for block in self._blocks(list(asking)):
            said.update(zip(block, in_halves(asked, block), strict=True))
            tell(f"states asked: {len(said)} of {len(asking)} documents")
        return {query: {name: said[name][query] for name, _ in ranking} for query, ranking in candidates.items()}

    def trials(
        self, labels: Sequence[SelfLabel], rankings: Sequence[Ranking], settings: RerankSettings, tell: Tell
    ) -> list[RerankTrial]:
        """Re-ranking trials: per own sentence the ranking's documents and the one without the sentence."""
        reranker = StateReranker(self.model, self.left, settings, all_heads=True)
        names = list(self.documents)
        trials: list[RerankTrial] = []
        for number, (label, ranking) in enumerate(zip(labels, rankings, strict=True), start=1):
            gold = names[label.document]
            texts = [label.rest if name == gold else self.documents[name] for name, _ in ranking]
            states = dict(zip((name for name, _ in ranking), self.states(texts), strict=True))
            trials.append(RerankTrial(gold, dict(ranking), reranker.evidence(label.query, states)))
            if number % 16 == 0:
                tell(f"re-ranking trials: {number} of {len(labels)}")
        return trials

    def _blocks(self, names: Sequence[str]) -> Iterator[list[str]]:
        block: list[str] = []
        tokens, most = 0, self.tokens_per_block or self._fitting()
        for name in names:
            block.append(name)
            tokens += len(self.documents[name]) // 3  # rather too many than too few
            if tokens >= most:
                yield block
                block, tokens = [], 0
        if block:
            yield block

    def _fitting(self) -> int:
        """Tokens whose states fit: on a GPU they stay there until their queries are through, which saves passes."""
        if self.model.device.type != "cuda" or not self.left.length:
            return _TOKENS_PER_BLOCK
        free, _ = torch.cuda.mem_get_info(self.model.device)
        a_token = self.left.nbytes / self.left.length * _PLACED_TWICE
        return max(_TOKENS_PER_BLOCK, int(free * _SHARE_OF_FREE / a_token))


def first_stage_trials(
    names: Sequence[str], labels: Sequence[SelfLabel], sparse: Sequence[Ranking], dense: Sequence[Ranking]
) -> list[FirstStageTrial]:
    """Pair the two rankings of every own sentence."""
    return [
        FirstStageTrial(names[label.document], {"sparse": words, "dense": meaning})
        for label, words, meaning in zip(labels, sparse, dense, strict=True)
    ]


def fused(parts: Mapping[str, Rankings], weights: Mapping[str, float], limit: int, method: str = "rsf") -> Rankings:
    """Fuse named rankings query by query."""
    queries = next(iter(parts.values()))
    return {
        query: [
            (hit.id, hit.score)
            for hit in fuse(
                {name: rankings[query] for name, rankings in parts.items()},
                weights,
                method="rrf" if method == "rrf" else "rsf",
                limit=limit,
            )
        ]
        for query in queries
    }


def reranked(first: Rankings, evidence: Mapping[str, Mapping[str, Evidence]], weights: Mapping[str, float]) -> Rankings:
    """The candidates that have evidence in their new order, the others behind them."""
    result: dict[str, Ranking] = {}
    for query, ranking in first.items():
        seen = evidence[query]
        head = {name: score for name, score in ranking if name in seen}
        order = [(name, score) for name, score, _ in combine(head, seen, weights)] if head else []
        floor = order[-1][1] if order else 0.0
        rest = [(name, floor - 1.0 - place) for place, (name, _) in enumerate(r for r in ranking if r[0] not in head)]
        result[query] = [*order, *rest]
    return result


def as_run(rankings: Rankings) -> dict[str, dict[str, float]]:
    """For `nnm_core.evaluation.metrics.per_query`."""
    return {query: dict(ranking) for query, ranking in rankings.items()}


@dataclass
class EncodedSet:
    """A set's raw dense vectors.

    Attributes:
        embedder: that made them.
        documents: [documents, dim].
        queries: [queries, dim].
    """

    embedder: KVEmbedder
    documents: Vectors
    queries: Vectors

    @classmethod
    def of(cls, data: RetrievalSet, model: LoadedModel, settings: EmbeddingSettings) -> EncodedSet:
        """Encode all documents and all queries."""
        embedder = KVEmbedder(model, settings)
        documents = embedder.encode(list(data.documents.values()), "context")
        return cls(embedder, documents, embedder.encode(list(data.queries.values()), "query"))
