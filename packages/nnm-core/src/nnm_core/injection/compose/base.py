"""What a composer is: a way to lay memories side by side that were not read together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from nnm_core.injection.plan import Plan
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import Segment
from nnm_core.states.cache import PlacedCache
from nnm_core.states.state import State

FindStored = Callable[[Segment], State | None]


@dataclass(frozen=True)
class Composition:
    """A prompt that is to be composed.

    Attributes:
        model: the model that answers.
        plan: its steps; those with the action ``composed`` were read behind another left context.
        room: tokens that will be decoded behind the prompt.
        stored: a memory segment's state as it was stored, keys unrotated, for composers that place it elsewhere.
    """

    model: LoadedModel
    plan: Plan
    room: int
    stored: FindStored = lambda segment: None


@dataclass(frozen=True)
class Composed:
    """What a composer made of it.

    Attributes:
        cache: holds the whole prompt.
        logits: [vocabulary], those that follow the prompt.
        recomputed: for each step, by its index, how many of its tokens were computed again.
    """

    cache: PlacedCache
    logits: Tensor
    recomputed: Mapping[int, int] = field(default_factory=dict)


class Composer(Protocol):
    """Carries out plans in which memories stand side by side that were read apart."""

    @property
    def name(self) -> str:
        """What it is called in `NNM.answer(composer=...)`, receipts and calibrations."""
        ...

    def refusal(self, model: LoadedModel) -> str:
        """Why it cannot work with this model, in a sentence; empty if it can."""
        ...

    def prefill(self, work: Composition) -> Composed:
        """Fill a cache with the prompt and predict what follows it."""
        ...
