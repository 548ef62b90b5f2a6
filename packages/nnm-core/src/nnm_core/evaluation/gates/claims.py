"""The claims gate: does a document support a claim, contradict it, or not say? Forced choice by label probabilities.

No text is decoded: the log-probabilities of the three label words behind the prompt are compared. A model prefers some
words whatever it is asked; contextual calibration (Zhao et al. 2021, "Calibrate Before Use", section 4) takes off what
it says about a claim and a document without content:

    score(label) = log p(label | prompt) - log p(label | prompt without content)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.claims import LABELS, NEI, Claim, ClaimSet
from nnm_core.evaluation.gates.asks import COLD, COMPOSED, NNM, RANDOM, SAME, cold, composed, injected, same_order
from nnm_core.evaluation.gates.core import Arm, Ask, Case, Item, Tell, chosen, silent, unique
from nnm_core.evaluation.gates.corpus import remember
from nnm_core.evaluation.gates.result import (
    Check,
    GateResult,
    compare,
    grouped,
    kept,
    of_arm,
    same_tokens,
    summarise,
)
from nnm_core.records import Answer, Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM as Engine
    from nnm_core.scoring import Scores

QUESTION = 'Is this claim true: "{claim}" Answer {labels}.'
EMPTY = "N/A"
_EMPTY_ID = "without content"
# Log-probabilities of the same tokens, injected and read, differ by rounding only.
_ROUNDING = 1e-2


@dataclass(frozen=True, slots=True)
class ClaimsSettings:
    """How claims are judged.

    Attributes:
        limit: judge a sample of so many claims; None judges all.
        words: what the model says for SUPPORT, CONTRADICT and NEI.
        question: with ``{claim}`` and ``{labels}``.
        calibrate: take off what the model says without content.
        seed: of the sample and the random documents.
        arms: only these, by name; None for all.
        composer: of the composed arm; None takes the default one.
    """

    limit: int | None = None
    words: tuple[str, str, str] = ("yes", "no", "unknown")
    question: str = QUESTION
    calibrate: bool = True
    seed: int = 0
    arms: tuple[str, ...] | None = None
    composer: str | None = None

    def ask(self, claim: str) -> str:
        """The question about a claim."""
        first, second, third = self.words
        return self.question.replace("{claim}", claim).replace("{labels}", f"{first}, {second} or {third}")


def run(engine: Engine, data: ClaimSet, settings: ClaimsSettings, *, tell: Tell = silent) -> GateResult:
    """Judge the claims of a set in every arm; a claim with several documents gets all of them.

    Args:
        engine: opened with ``state_cache=0``, so that no arm lives on another's work.
        data: claims, documents, labels.
        settings: how.
        tell: told of the progress.

    Raises:
        InvalidInputError: the label words are not three different ones, or the question lacks the claim.
        ContextOverflowError: a document does not fit the model; nothing is ever cut short.
    """
    if len(set(settings.words)) != len(LABELS) or not all(word.strip() for word in settings.words):
        raise InvalidInputError(f"{settings.words} are not three different words.", hint="--words yes,no,unknown")
    if "{claim}" not in settings.question:
        raise InvalidInputError("The question does not say where the claim stands.", hint="Put {claim} into it.")
    cases = _cases(data, settings)
    held = {name: data.documents[name] for case in cases for name in case.data.documents}
    memories = remember(engine, held | {_EMPTY_ID: EMPTY}, searchable=False, tell=tell)
    arms = chosen(_arms(memories, settings), settings.arms)
    judge = _Judge(engine, settings)
    offsets = {name: judge.offset(arm) for name, arm in arms.items()}
    items = []
    for number, case in enumerate(unique(cases)):
        tell("Judging", number, len(cases))
        items += [judge.item(name, case, arm(case), offsets[name]) for name, arm in arms.items()]
    tell("Judging", len(cases), len(cases))
    figures = summarise(items)
    for arm, row in figures.items():
        row["macro_f1"] = macro_f1([(item.case.golds[0], item.answer.text) for item in of_arm(items, arm)])
        row["said"] = {label: sum(item.answer.text == label for item in of_arm(items, arm)) for label in LABELS}
        row["offsets"] = dict(zip(LABELS, offsets[arm], strict=True))
    return GateResult(
        "claims",
        "accuracy",
        figures,
        compare(items, [(NNM, SAME), (COMPOSED, SAME), (NNM, COLD), (RANDOM, COLD)], "accuracy"),
        kept([same_tokens(items, NNM, SAME), judge.same_scores(NNM, SAME)]),
        items,
        grouped(items, ["label"], "accuracy"),
        {
            "data": data.name,
            "claims": len(cases),
            "claims_in_data": len(data.claims),
            "labels": {label: sum(case.golds[0] == label for case in cases) for label in LABELS},
            **asdict(settings),
        },
    )


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean over the labels of F1 of (gold, said) pairs; a label that is neither wanted nor said counts 0."""
    scores = []
    for label in LABELS:
        hits = sum(gold == said == label for gold, said in pairs)
        wanted, said = sum(gold == label for gold, _ in pairs), sum(word == label for _, word in pairs)
        scores.append(2 * hits / (wanted + said) if wanted + said else 0.0)
    return sum(scores) / len(scores)


def _cases(data: ClaimSet, settings: ClaimsSettings) -> list[Case]:
    claims = list(data.claims)
    if settings.limit is not None and settings.limit < len(claims):
        picked = set(random.Random(settings.seed).sample(range(len(claims)), settings.limit))  # noqa: S311 - repeatable
        claims = [claim for place, claim in enumerate(claims) if place in picked]
    return [Case(claim.id, claim.text, (claim.label,), {"label": claim.label}, claim) for claim in claims]


def _arms(memories: Mapping[str, Memory], settings: ClaimsSettings) -> dict[str, Arm]:
    pool = [memory for name, memory in memories.items() if name != _EMPTY_ID]

    def own(case: Case) -> list[Memory]:
        claim: Claim = case.data
        return [memories[name] for name in claim.documents]

    def other(case: Case) -> list[Memory]:
        if case.id == _EMPTY_ID:
            return own(case)
        chance = random.Random(f"{settings.seed}/{case.id}")  # noqa: S311 - a reproducible choice, no secret
        strangers = [memory for memory in pool if memory.id not in case.data.documents]
        return [chance.choice(strangers)] if strangers else []

    return {
        COLD: lambda case: cold(settings.ask(case.question)),
        SAME: lambda case: same_order(settings.ask(case.question), own(case)),
        NNM: lambda case: injected(settings.ask(case.question), own(case)),
        COMPOSED: lambda case: composed(settings.ask(case.question), own(case), settings.composer),
        RANDOM: lambda case: injected(settings.ask(case.question), other(case)),
    }


class _Judge:
    """Scores the label words, and remembers by how much two arms differ."""

    def __init__(self, engine: Engine, settings: ClaimsSettings) -> None:
        self._engine, self._settings = engine, settings
        blank = "" if engine.model.tokenizer.chat_template else " "
        self._words = [blank + word for word in settings.words]
        self._raw: dict[str, dict[str, tuple[float, ...]]] = {}

    def offset(self, arm: Arm) -> tuple[float, ...]:
        """What the arm says of each label about nothing; zeros without calibration."""
        if not self._settings.calibrate:
            return (0.0,) * len(LABELS)
        nothing = Case(_EMPTY_ID, EMPTY, (NEI,), {"label": NEI}, Claim(_EMPTY_ID, EMPTY, (_EMPTY_ID,), NEI))
        return self._score(arm(nothing)).log_probs

    def item(self, name: str, case: Case, ask: Ask, offset: Sequence[float]) -> Item:
        """The most likely label, as an answer of that word; calibrated and not."""
        found = self._score(ask)
        self._raw.setdefault(name, {})[case.id] = found.log_probs
        calibrated = [value - bias for value, bias in zip(found.log_probs, offset, strict=True)]
        best = LABELS[max(range(len(LABELS)), key=calibrated.__getitem__)]
        scores = {"accuracy": float(best == case.golds[0]), "accuracy_raw": float(LABELS[found.best] == case.golds[0])}
        logs = {f"log p {label}": value for label, value in zip(LABELS, found.log_probs, strict=True)}
        shown = replace(case, labels={**case.labels, **logs})
        answer = Answer(best, (LABELS.index(best),), (), found.receipt)
        return Item(name, shown, answer, scores, ask.names)

    def same_scores(self, ours: str, theirs: str) -> Check | None:
        """Injected and read, the log-probabilities themselves are the same but for rounding."""
        if ours not in self._raw or theirs not in self._raw:
            return None
        worst = max(
            abs(a - b)
            for key, values in self._raw[ours].items()
            for a, b in zip(values, self._raw[theirs][key], strict=True)
        )
        detail = f"largest difference of a label's log-probability: {worst:.1e}"
        return Check(f"{ours} scores = {theirs} scores", worst < _ROUNDING, detail)

    def _score(self, ask: Ask) -> Scores:
        assert isinstance(ask.prompt, str)  # every arm here asks a question
        return self._engine.score(
            ask.prompt,
            self._words,
            memories=ask.memories,
            mode=ask.mode,
            policy=ask.policy,
            composer=ask.composer,
        )
