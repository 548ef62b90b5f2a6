"""What happens to each segment of a prompt: loaded from a state, or read.

A plan is made by walking the tree of states from the root. As long as the next segment is known behind exactly
this left context, its state is exact. From the first unknown segment on, the policy decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnm_core.errors import PositionError
from nnm_core.model.prompt import Segment
from nnm_core.records import Policy, Tier, UseAction
from nnm_core.states.state import ROOT, PlacedState, chain

# Why a memory is read that will be injected the next time.
FIRST_TIME = "no state behind this left context yet; read, and kept for the next time"

# (segment, name of the context before it, position of its first token) -> its exact state, if there is one
FindExact = Callable[[Segment, str, int], PlacedState | None]
# (segment, position of its first token) -> the memory's state from another left context, moved there
FindAny = Callable[[Segment, int], PlacedState | None]
# (segment, name of the context that ends with it, whether it would have to be composed) -> why not to load it, or empty
ReadInstead = Callable[[Segment, str, bool], str]


@dataclass(frozen=True)
class Step:
    """One segment and what is done with it.

    Attributes:
        segment: the tokens.
        start: position of the first of them.
        name: `chain` of the context that ends with this segment.
        action: ``exact`` or ``composed`` load `state`; ``read`` computes.
        state: what is loaded.
        reason: for a memory that is read, why.
        seconds: what finding and placing the state took.
    """

    segment: Segment
    start: int
    name: str
    action: UseAction
    state: PlacedState | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def tier(self) -> Tier:
        """What is guaranteed for this segment alone; ``text`` if it is read."""
        if self.state is None:
            return "text"
        if self.action == "composed":
            return "composed"
        return "exact" if self.state.origin.lossless else "compressed"


@dataclass(frozen=True)
class Plan:
    """The steps of one prompt, in order."""

    steps: tuple[Step, ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return sum(len(step.segment.ids) for step in self.steps)

    @property
    def tokens_injected(self) -> int:
        """Prompt tokens whose states are loaded."""
        return sum(len(step.segment.ids) for step in self.steps if step.state is not None)

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that the model reads."""
        return self.length - self.tokens_injected

    @property
    def composed(self) -> bool:
        """Whether a memory stands behind another context than it was read behind."""
        return any(step.action == "composed" for step in self.steps)

    @property
    def tier(self) -> Tier:
        """``text`` if no memory is injected, else the weakest guarantee among the steps."""
        if self.composed:
            return "composed"
        if any(step.tier == "compressed" for step in self.steps):
            return "compressed"
        injected = any(step.state is not None and step.segment.memory is not None for step in self.steps)
        return "exact" if injected else "text"


def read_plan(segments: Sequence[Segment], reason: str = "") -> Plan:
    """Every segment is read: ordinary prompting with the same tokens."""
    return make_plan(segments, "exact", lambda *_: None, lambda *_: None, reason=reason)


def make_plan(
    segments: Sequence[Segment],
    policy: Policy,
    find_exact: FindExact,
    find_any: FindAny,
    *,
    compose: bool | None = None,
    reason: str = FIRST_TIME,
    read_instead: ReadInstead | None = None,
) -> Plan:
    """Walk `segments` and decide.

    ``exact`` loads only exact states and reads the rest, so the answer is that of reading everything. ``fast`` also
    places states of other left contexts (composition), ``auto`` does so if `compose` says that it is known to be good
    enough. The last segment is always read, since the next token is predicted from it.

    Args:
        compose: whether to compose; by default only ``fast`` does, and ``exact`` never does.
        reason: what is said of memories that are read because no state fits.
        read_instead: why a memory is to be read whatever states there are.
    """
    composes = policy != "exact" and (policy == "fast" if compose is None else compose)
    steps: list[Step] = []
    name, start, exact = ROOT, 0, True
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        began = time.perf_counter()
        left, name = name, chain(name, segment.ids)
        if read_instead is not None and segment.memory is not None and not last:
            better = read_instead(segment, name, not exact)
            if better:  # what is read behind an exact context is exact as well
                steps.append(Step(segment, start, name, "read", None, better))
                start += len(segment.ids)
                continue
        state = find_exact(segment, left, start) if exact and not last else None
        action: UseAction = "exact" if state is not None else "read"
        why = "the prompt ends with it" if last else reason
        if state is None:
            exact = False
            if composes and segment.memory is not None and not last:
                state, why = _moved(segment, start, find_any, why)
                action = "composed" if state is not None else "read"
        read_memory = action == "read" and segment.memory is not None
        seconds = 0.0 if state is None else time.perf_counter() - began
        steps.append(Step(segment, start, name, action, state, why if read_memory else "", seconds))
        start += len(segment.ids)
    return Plan(tuple(steps))


def _moved(segment: Segment, start: int, find_any: FindAny, why: str) -> tuple[PlacedState | None, str]:
    try:
        state = find_any(segment, start)
    except PositionError as error:
        return None, str(error)
    return state, why if state is None else ""
