"""The planner's side of the engine's public face: what is known about this machine and these memories."""

from __future__ import annotations

import random
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nnm_core.answering import Answerer
from nnm_core.collection import Collection
from nnm_core.embedding.pairs import sentences
from nnm_core.errors import InvalidInputError
from nnm_core.injection.calibration import Calibrator, Probe, Score
from nnm_core.injection.compose import composer, names
from nnm_core.injection.costs import Costs, keep_costs, load_costs, measure_costs
from nnm_core.injection.planner import Planner, Quality
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import PromptFormat, Segment, question_prompt
from nnm_core.records import Hit, Memory
from nnm_core.states.codecs import CODECS, Codec, make_codec
from nnm_core.states.state import PlacedState

_SETTING = "calibration"
_SAMPLE = 512


def open_planner(model: LoadedModel, collection: Collection) -> Planner:
    """The planner of a namespace, with what was measured before."""
    stored = collection.journal.get_setting(_SETTING) or {}
    known = stored.get("quality", {}) if stored.get("fingerprint") == model.fingerprint else {}
    where = "ram" if collection.settings.path is None else "disk"
    quality = {name: Quality(**row) for name, row in known.items()}
    return Planner(load_costs(model), quality, where, collection.codec.name)  # type: ignore[arg-type]  # a literal


class PlanFace:
    """What an open engine knows and finds out about the cost and the quality of injecting."""

    model: LoadedModel
    namespace: str
    system: str | None
    _answerer: Answerer
    _collection: Collection
    _format: PromptFormat

    @abstractmethod
    def _left_state(self) -> PlacedState:
        """See `NNM._left_state`."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `EngineClosedError` after `close`."""

    @abstractmethod
    def search(self, query: str = "", k: int = 4) -> list[Hit]:
        """See `NNM.search`."""

    @property
    def planner(self) -> Planner:
        """What decides between text, exact states and compositions."""
        return self._answerer.planner

    @planner.setter
    def planner(self, planner: Planner) -> None:
        self._answerer.planner = planner

    def measure(self, *, refresh: bool = False, progress: Callable[[str], None] = lambda text: None) -> Costs:
        """What reading, loading and composing cost on this machine; measured once per machine and model, and kept.

        Until that has been done, states are loaded wherever they are exact, however short the memory.

        Args:
            refresh: measure again.
            progress: told what is measured next.
        """
        self._check_open()
        costs = None if refresh else load_costs(self.model)
        if costs is None:
            folder = self._collection.settings.path
            costs = measure_costs(self.model, folder=folder, progress=progress)
            costs = keep_costs(self.model, costs)
        self.planner = replace(self.planner, costs=costs)
        return costs

    def calibrate(
        self,
        score: Score,
        *,
        count: int = 16,
        together: int = 3,
        questions: Sequence[tuple[str, Sequence[str]]] = (),
        composers: Sequence[str] | None = None,
        codecs: Sequence[str] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Mapping[str, Quality]:
        """How near each composer and codec comes to reading, on these memories; kept with the namespace.

        Args:
            score: F1 of an answer against right ones, e.g. `nnm_core.evaluation.answers.f1`.
            count: how many prompts.
            together: how many memories stand side by side in the prompts for composers.
            questions: (question, right answers), whose memories are recalled; without any, the beginning of a sentence
                of a memory is to be continued, and the answer of reading is the right one.
            composers, codecs: which to compare; all by default.
            progress: called with (done, total).

        Raises:
            InvalidInputError: there are too few memories.
            ContextOverflowError: a memory alone does not fit the context with its question.
        """
        self._check_open()
        asked = self._asked(count, together, questions)
        kinds = [composer(name) for name in (names() if composers is None else composers)]
        forms = _fitting(self.model, CODECS if codecs is None else codecs)
        total, finished = 2 * len(asked), 0

        def done() -> None:
            nonlocal finished
            finished += 1
            progress(finished, total)

        worker = Calibrator(self.model, self._left_state(), score)
        several = [self._probe(question, memories, golds) for question, memories, golds in asked]
        alone = [self._probe(question, memories[:1], golds) for question, memories, golds in asked]
        found = {**worker.composers(several, kinds, done), **worker.codecs(alone, forms, done)}
        quality = {**self.planner.quality, **found}
        rows = {name: asdict(row) for name, row in quality.items()}
        date = time.strftime("%Y-%m-%d", time.gmtime())
        kept = {"fingerprint": self.model.fingerprint, "date": date, "quality": rows}
        self._collection.journal.set_setting(_SETTING, kept)
        self.planner = replace(self.planner, quality=quality)
        return found

    def _probe(self, question: str, memories: Sequence[Memory], golds: tuple[str, ...]) -> Probe:
        """The prompt, without the last memories where all do not fit the context."""
        for kept in range(len(memories), 0, -1):
            segments = self._format.segments(question_prompt(question, memories[:kept], self.system))
            if kept == 1 or self._fits(segments):
                break
        self._answerer.check_fit(segments, Calibrator.tokens)
        return Probe(segments, golds)

    def _fits(self, segments: Sequence[Segment]) -> bool:
        return sum(len(segment.ids) for segment in segments) + Calibrator.tokens <= self.model.context_limit

    def _asked(
        self, count: int, together: int, questions: Sequence[tuple[str, Sequence[str]]]
    ) -> list[tuple[str, list[Memory], tuple[str, ...]]]:
        """Questions with their memories and right answers."""
        if questions:
            found = [
                (text, [hit.memory for hit in self.search(text, together)], tuple(golds))
                for text, golds in questions[:count]
            ]
            return [row for row in found if row[1]]
        memories = [entry.memory for entry in next(self._collection.journal.iter_live(_SAMPLE), [])]
        generator = random.Random(0)  # noqa: S311 - a reproducible sample, no secret
        generator.shuffle(memories)
        made: list[tuple[str, list[Memory], tuple[str, ...]]] = []
        for memory in memories:
            begun = _beginning(memory.text)
            if begun and len(made) < count:
                others = [other for other in memories if other.id != memory.id]
                rest = generator.sample(others, min(together - 1, len(others)))
                group = [memory, *rest]
                generator.shuffle(group)
                made.append((f'Complete this sentence from the text: "{begun} ..."', group, ()))
        if not made or len(memories) < 2:
            raise InvalidInputError(
                f"There are too few memories in {self.namespace!r} to calibrate on.",
                hint="Add at least two texts of some sentences, or pass questions.",
            )
        return made


def _beginning(text: str) -> str:
    """The first half of the longest sentence of a text; empty if it has none of six words."""
    longest = max((part.split() for part in sentences(text)), key=len, default=[])
    return " ".join(longest[: len(longest) // 2]) if len(longest) >= 6 else ""


def _fitting(model: LoadedModel, specs: Any) -> list[Codec]:
    found = []
    for spec in specs:
        codec = make_codec(spec)
        try:
            codec.check(model)
        except InvalidInputError:
            continue
        found.append(codec)
    return found
