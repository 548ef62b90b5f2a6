"""Strength and layers on the user's own questions: which setting answers best, and how likely the gold answer becomes.

Each question is asked about its own passages, which are injected behind the canonical left context. Measured are EM, F1
and the mean log-probability of the gold answer's tokens, which moves long before an answer flips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import exact_match, f1
from nnm_core.evaluation.datasets import Question, QuestionSet
from nnm_core.evaluation.statistics import bootstrap, paired_bootstrap
from nnm_core.injection.generate import DecodeSettings, decode
from nnm_core.injection.plan import Plan, Step
from nnm_core.injection.prefill import forward, load
from nnm_core.injection.score import log_probabilities
from nnm_core.injection.settings import InjectionSettings, Scaling
from nnm_core.injection.steering import Pool, Steering, memory_vector, steered
from nnm_core.injection.strength import scaled
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import DEFAULT_SYSTEM, PromptFormat, question_prompt
from nnm_core.records import Memory
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place

BASE = "as read"
BARE = "bare"
Kind = Literal["from", "up to", "only", "without"]
_LONGEST = 16


@dataclass(frozen=True)
class Setting:
    """One arm: what is set, or, of the residual route, where a vector is added."""

    name: str
    injection: InjectionSettings | None = None
    steering: tuple[int, float, Pool] | None = None


@dataclass
class Scores:
    """One value a question."""

    em: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)


def strengths(values: Sequence[float], by: Scaling) -> list[Setting]:
    """One arm a strength."""
    return [Setting(f"{value:g}", InjectionSettings(value, by)) for value in values if value != 1.0]


def places(layers: int, kind: Kind) -> list[Setting]:
    """One arm a layer: memories visible from it on, up to it, only in it, or everywhere else."""
    every = range(layers)
    chosen: Mapping[Kind, Callable[[int], tuple[int, ...]]] = {
        "from": lambda at: tuple(every[at:]),
        "up to": lambda at: tuple(every[: at + 1]),
        "only": lambda at: (at,),
        "without": lambda at: tuple(layer for layer in every if layer != at),
    }
    found = [Setting(f"{kind} {at}", InjectionSettings(layers=chosen[kind](at))) for at in every]
    return [setting for setting in found if setting.injection and not setting.injection.felt_as_read(layers)]


def additions(layers: int, strength: float, pool: Pool) -> list[Setting]:
    """One arm a layer of the residual route."""
    return [Setting(f"added at {at}", steering=(at, strength, pool)) for at in range(layers)]


class Sweep:
    """Asks every question under every setting, beside `BASE` (nothing set) and `BARE` (no memory)."""

    def __init__(self, model: LoadedModel, settings: Sequence[Setting], *, max_tokens: int = _LONGEST) -> None:
        """Raises `InvalidInputError` or `UnsupportedModelError` where the model cannot do what a setting asks."""
        self.model = model
        self.settings = [Setting(BASE, InjectionSettings()), Setting(BARE), *settings]
        for setting in self.settings:
            if setting.injection is not None:
                setting.injection.check(model)
        self.scores = {setting.name: Scores() for setting in self.settings}
        self._decoding = DecodeSettings(max_tokens)
        self._format = PromptFormat(model.tokenizer)
        self._left_ids = self._format.left_context(DEFAULT_SYSTEM)
        self._left = place(model, capture(model, [self._left_ids])[0], 0)

    def run(self, data: QuestionSet) -> Iterator[Question]:
        """Ask all questions; yields each when it has been asked.

        Raises:
            InvalidInputError: a question without passages.
        """
        for question in data.questions:
            if not question.passages:
                raise InvalidInputError(
                    f"Question {question.id!r} has no passages.", hint="Give each question its context."
                )
            self._ask(question, [data.passages[name] for name in question.passages])
            yield question

    @torch.inference_mode()
    def _ask(self, question: Question, texts: Sequence[str]) -> None:
        memories = [Memory(id=str(index), text=text) for index, text in enumerate(texts)]
        prompt = question_prompt(question.text, memories, DEFAULT_SYSTEM)
        plan = self._plan(prompt)
        bare_ids = self._ids(question_prompt(question.text, [], DEFAULT_SYSTEM))
        # Models differ in whether they begin an answer with a blank; the likelier way counts.
        gold = [self._format.text_ids(blank + question.answers[0]) for blank in ("", " ")]
        memory_ids = [token for step in plan.steps[:-1] if step.segment.memory for token in step.segment.ids]
        for setting in self.settings:
            if setting.injection is not None:
                text, likely = self._injected(plan, setting.injection, gold)
            else:
                model = self.model
                if setting.steering is not None:
                    at, strength, pool = setting.steering
                    vector = memory_vector(model, self._left_ids, memory_ids, layer=at, pool=pool)
                    model = steered(model, Steering(vector, at, strength))
                cache = PlacedCache(model.layers, capacity=len(bare_ids) + self._room(gold))
                text, likely = self._read(model, cache, bare_ids, gold)
            scores = self.scores[setting.name]
            scores.em.append(100 * exact_match(text, question.answers))
            scores.f1.append(100 * f1(text, question.answers))
            scores.gold.append(likely)

    def _room(self, gold: Sequence[Sequence[int]]) -> int:
        return max(self._decoding.max_tokens, *(len(ids) for ids in gold))

    def _ids(self, messages: Any) -> list[int]:
        return [token for segment in self._format.segments(messages) for token in segment.ids]

    def _plan(self, messages: Any) -> Plan:
        """All memories read behind each other once and loaded; the rest is read."""
        segments = self._format.segments(messages)
        last = max(index for index, segment in enumerate(segments) if segment.memory is not None)
        before = [token for segment in segments[: last + 1] for token in segment.ids]
        behind = before[len(self._left_ids) :]
        whole = place(self.model, capture(self.model, [behind], self._left)[0], self._left.length)
        steps, start = [Step(segments[0], 0, "", "exact", self._left)], self._left.length
        for segment in segments[1 : last + 1]:
            steps.append(Step(segment, start, "", "exact", whole))
            start += len(segment.ids)
        rest = [Step(segment, start, "", "read") for segment in segments[last + 1 :]]
        return Plan((*steps, *rest))

    def _injected(self, plan: Plan, settings: InjectionSettings, gold: Sequence[Sequence[int]]) -> tuple[str, float]:
        rest = [token for step in plan.steps if step.state is None for token in step.segment.ids]
        cache = PlacedCache(self.model.layers, capacity=plan.length + self._room(gold))
        load(cache, self._left)
        load(cache, plan.steps[1].state)  # of all memories together
        cache.intervention = scaled(plan, settings, self.model)
        return self._read(self.model, cache, rest, gold)

    def _read(
        self, model: LoadedModel, cache: PlacedCache, ids: Sequence[int], gold: Sequence[Sequence[int]]
    ) -> tuple[str, float]:
        logits, likely = self._gold(model, cache, ids, gold)
        return "".join(piece.text for piece in decode(model, cache, logits, self._decoding)), likely

    def _gold(
        self, model: LoadedModel, cache: PlacedCache, ids: Sequence[int], gold: Sequence[Sequence[int]]
    ) -> tuple[Tensor, float]:
        """Read `ids`; the logits behind them, and the likeliest gold answer's mean log-probability a token."""
        first = forward(model, cache, list(ids))
        sums = log_probabilities(model, cache, first, gold)
        return first, max(total / len(answer) for total, answer in zip(sums, gold, strict=True))

    def report(self) -> dict[str, dict[str, Any]]:
        """Per arm the means with intervals, and the paired differences to `BASE`."""
        base = self.scores[BASE]
        arms: dict[str, dict[str, Any]] = {}
        for setting in self.settings:
            scores = self.scores[setting.name]
            arms[setting.name] = {
                "em": bootstrap(scores.em),
                "f1": bootstrap(scores.f1),
                "gold_logprob": bootstrap(scores.gold),
                "f1_minus_base": paired_bootstrap(scores.f1, base.f1),
                "gold_minus_base": paired_bootstrap(scores.gold, base.gold),
            }
        return arms
