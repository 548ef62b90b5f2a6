"""Re-ranking on stored states: no document is read again, only the query, once, over all candidates' states.

Three witnesses speak for a candidate m of a query q:

* likelihood: sum_t w_t (log P(q_t | state of m) - log P(q_t | no memory)) / sum_t w_t, the query-likelihood re-ranker
  UPR (Sachan et al. 2022) with the document in the cache instead of in the prompt, contrasted with reading without it.
  The contrast does not change the order within one query; it makes the number mean the same for all queries ("how much
  does this memory explain the question?"), which is what an abstain threshold needs. As in the attention scores, w_t is
  the surprise -log P(q_t | no memory), chosen against equal weights on training queries of SciFact.
* attention: see `nnm_core.recall.attention_scores`; its spread over the memory's tokens says which span answers.
* the first stage's own score.

Each is brought to mean 0 and deviation 1 over the candidates and summed by its weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nnm_core.embedding.kv_embedding import EncoderModel
from nnm_core.errors import InvalidInputError
from nnm_core.model.attention import AttentionIntervention
from nnm_core.model.batching import in_halves, padded_batches
from nnm_core.model.prompt import QUESTION_HEADER
from nnm_core.recall.attention_scores import AttentionProbe, Head
from nnm_core.recall.fusion import FusedHit
from nnm_core.recall.state_pass import Nothing, Rows, StateView, read_over

Array = NDArray[np.float32]
# Of the logits of one pass: rows x tokens read x vocabulary, float32.
_LOGIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class RerankSettings:
    """How candidates are re-ranked; stored with the collection.

    Attributes:
        weights: of ``first``, ``likelihood`` and ``attention``.
        heads: the heads whose attention counts, (layer, head); `nnm_core.recall.tuning` finds them. Without any,
            attention has no say.
        cue: text before the query; by default what stands there in NNM's own prompts, so that the model reads what it
            will read when it answers. Empty: the query follows the memory directly and its first token is given.
        depth: how many candidates of the first stage are re-ranked.
        tokens_per_batch: state tokens that are loaded into one forward pass.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"first": 1.0, "likelihood": 0.3, "attention": 0.3})
    heads: tuple[Head, ...] = ()
    cue: str = QUESTION_HEADER.strip()
    depth: int = 50
    tokens_per_batch: int = 16384

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(sorted((int(layer), int(head)) for layer, head in self.heads)))
        if any(weight < 0 for weight in self.weights.values()) or self.depth < 1:
            raise InvalidInputError("Re-ranking weights must not be negative and the depth must be positive.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-like values; `RerankSettings(**values)` reads them back."""
        return {**asdict(self), "weights": dict(self.weights)}


@dataclass(frozen=True)
class Evidence:
    """What the states say about one candidate.

    Attributes:
        likelihood: gain of the query's log-probability a token through the memory, in nats, mean weighted by surprise;
            below or near 0 the memory says nothing about the query.
        attention: per noted head the log attention mass on the memory, [heads]; empty without heads.
        spread: share of the attention on each token of the memory, [tokens]; empty without heads.
        gains: what `likelihood` is the weighted mean of, [query tokens].
        surprise: the weights, [query tokens].
    """

    likelihood: float
    attention: Array
    spread: Array
    gains: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    surprise: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    def of_heads(self, columns: Sequence[int]) -> Evidence:
        """The same with the attention of some heads only, named by their place in `attention`."""
        return replace(self, attention=self.attention[list(columns)])

    def span(self, width: int = 32) -> tuple[int, int]:
        """Token range [start, stop) of the `width` neighbouring tokens that get most attention: what to cite."""
        if len(self.spread) <= width:
            return 0, len(self.spread)
        sums = np.convolve(self.spread, np.ones(width, np.float32), "valid")
        start = int(sums.argmax())
        return start, start + width


class StateReranker:
    """Reads queries over states.

    Args:
        model: the loaded model that made the states.
        left: the state of the canonical left context that they were made behind.
        settings: see `RerankSettings`.
        all_heads: note every head, to choose among them; spreads are left out then.
    """

    def __init__(
        self,
        model: EncoderModel,
        left: StateView,
        settings: RerankSettings | None = None,
        *,
        all_heads: bool = False,
    ) -> None:
        self.settings = settings or RerankSettings()
        self._model = model
        self._left = left
        self._all_heads = all_heads
        self._looks = model.intervenes and (all_heads or bool(self.settings.heads))
        self._literal = copy.deepcopy(model.tokenizer)  # never switched by other threads, see `EmbeddingPrompt`
        self._null = lru_cache(maxsize=1024)(self._read_without)

    def evidence(self, query: str, candidates: Mapping[str, StateView]) -> dict[str, Evidence]:
        """What the candidates' states say about a query, by id.

        Raises:
            InvalidInputError: the query has no token.
        """
        if not candidates:
            return {}
        cue, ids = self._tokens(query)
        states = list(candidates.values())
        null = self._null(tuple(cue), tuple(ids))
        names = list(candidates)
        found: dict[str, Evidence] = {}
        lengths = [state.length + self._left.length for state in states]
        vocabulary = int(self._model.hf.config.get_text_config().vocab_size)
        most = max(1, _LOGIT_BYTES // (4 * vocabulary * (len(cue) + len(ids))))
        for group in padded_batches(lengths, self.settings.tokens_per_batch, most):
            members = [states[index] for index in group]
            read = in_halves(lambda few: self._read(few, cue, ids, null), members)
            found.update((names[index], evidence) for index, evidence in zip(group, read, strict=True))
        return {name: found[name] for name in names}

    def rerank(self, query: str, hits: Sequence[FusedHit], states: Mapping[str, StateView]) -> list[FusedHit]:
        """`hits` in their new order; those beyond the depth or without a state keep their place behind the others.

        The parts of a re-ranked hit get ``first`` (its old score), ``likelihood`` and ``attention``, and with heads
        ``span_start`` and ``span_stop``: the state's tokens that get most attention.
        """
        head = [hit for hit in hits[: self.settings.depth] if hit.id in states]
        if not head:
            return list(hits)
        evidence = self.evidence(query, {hit.id: states[hit.id] for hit in head})
        order = combine({hit.id: hit.score for hit in head}, evidence, self.settings.weights)
        known = {hit.id: hit for hit in head}
        ranked = [
            FusedHit(key, score, {**known[key].parts, **parts, **_span_parts(evidence[key])})
            for key, score, parts in order
        ]
        floor = ranked[-1].score
        rest = [hit for hit in hits if hit.id not in known]
        # Scores of one list fall from first to last, also where the two kinds of score meet.
        behind = [FusedHit(hit.id, floor - 1.0 - place, hit.parts) for place, hit in enumerate(rest)]
        return ranked + behind

    def _read(self, states: Sequence[StateView], cue: list[int], ids: list[int], null: Tensor) -> list[Evidence]:
        made: list[tuple[Rows, AttentionProbe]] = []
        weights = (-null).clamp_min(1e-3)

        def probe(rows: Rows) -> AttentionIntervention:
            heads = None if self._all_heads else self.settings.heads
            made.append((rows, AttentionProbe(rows, weights, heads=heads, profiles=not self._all_heads)))
            return made[-1][1]

        read = read_over(self._model, self._left, states, cue=cue, query=ids, probe=probe if self._looks else None)
        gains, surprise = (read - null).cpu().numpy(), weights.float().cpu().numpy()
        likelihoods = gains @ surprise / surprise.sum()
        if not made:
            nothing = np.zeros(0, np.float32)
            pairs = zip(likelihoods, gains, strict=True)
            return [Evidence(float(likelihood), nothing, nothing, gain, surprise) for likelihood, gain in pairs]
        rows, looked = made[0]
        scores = looked.scores().cpu().numpy()
        spread = None if self._all_heads else looked.spread().cpu().numpy()
        starts = rows.starts.tolist()
        return [
            Evidence(
                float(likelihoods[row]),
                scores[row],
                np.zeros(0, np.float32) if spread is None else spread[row, starts[row] : rows.stop],
                gains[row],
                surprise,
            )
            for row in range(len(states))
        ]

    def _read_without(self, cue: tuple[int, ...], ids: tuple[int, ...]) -> Tensor:
        """Log-probabilities [query] of the query behind the left context alone."""
        return read_over(self._model, self._left, [Nothing(self._left)], cue=cue, query=ids)[0]

    def _tokens(self, query: str) -> tuple[list[int], list[int]]:
        """Token ids before the query (at least one) and of the query (at least one)."""
        text = query.strip()
        cue = self._ids(self.settings.cue) if self.settings.cue else []
        ids = self._ids(f" {text}" if cue else text)
        if not cue and len(ids) < 2:
            cue, ids = self._ids("Question:"), self._ids(f" {text}")
        if not text or not ids or not (cue or len(ids) > 1):
            raise InvalidInputError("The query has no tokens.")
        return (cue, ids) if cue else (ids[:1], ids[1:])

    def _ids(self, text: str) -> list[int]:
        return list(self._literal(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _span_parts(evidence: Evidence) -> dict[str, float]:
    if not len(evidence.spread):
        return {}
    start, stop = evidence.span()
    return {"span_start": float(start), "span_stop": float(stop)}


def combine(
    first: Mapping[str, float], evidence: Mapping[str, Evidence], weights: Mapping[str, float]
) -> list[tuple[str, float, dict[str, float]]]:
    """(id, score, parts) best first: the weighted sum of what each witness says, standardised over the candidates.

    Ties keep the order of the first stage.
    """
    names = list(first)
    witnesses = witness_scores(names, first, evidence)
    total = np.zeros(len(names))
    for name, values in witnesses.items():
        total += weights.get(name, 0.0) * standardised(values)
    order = sorted(range(len(names)), key=lambda index: (-total[index], -first[names[index]], names[index]))
    return [
        (names[index], float(total[index]), {name: float(values[index]) for name, values in witnesses.items()})
        for index in order
    ]


def witness_scores(
    names: Sequence[str], first: Mapping[str, float], evidence: Mapping[str, Evidence]
) -> dict[str, NDArray[np.float64]]:
    """Per witness one number a candidate; several heads are standardised each and averaged."""
    scores = {
        "first": np.array([first[name] for name in names], np.float64),
        "likelihood": np.array([evidence[name].likelihood for name in names], np.float64),
    }
    heads = np.stack([evidence[name].attention for name in names]).astype(np.float64)
    if heads.shape[1]:
        scores["attention"] = np.stack([standardised(column) for column in heads.T]).mean(axis=0)
    return scores


def standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and deviation 1; all 0 when they are all the same."""
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 1e-12 else np.zeros_like(values)
