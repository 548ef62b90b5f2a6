"""From a prompt to an answer: plan, load, read, decode, and say in a receipt what was done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from nnm_core.errors import ContextOverflowError, MemoryNotInjectedError, PositionError
from nnm_core.injection.generate import DecodeSettings, decode
from nnm_core.injection.plan import FIRST_TIME, Plan, make_plan, read_plan
from nnm_core.injection.prefill import keep_read, prefill
from nnm_core.injection.tree import StateTree
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import PromptFormat, PromptMessage, Segment, question_prompt
from nnm_core.records import Answer, Chunk, Hit, Memory, Mode, Policy, Receipt
from nnm_core.states.capture import place
from nnm_core.states.state import PlacedState, State, chain

logger = logging.getLogger(__name__)

# The stored state of a memory, or None if there is none that this model can use.
FindState = Callable[[Memory], State | None]


@dataclass(frozen=True)
class Request:
    """One prompt to be answered.

    Attributes:
        messages: the prompt, memories in their places.
        hits: the memories that were given to it, best first.
        mode: ``inject`` loads states where it can, ``read`` and ``bare`` read everything.
        policy: what may be loaded (`nnm_core.injection.plan.make_plan`).
        decoding: how the answer is decoded.
        started: `time.perf_counter` at the call, so that recall counts.
        fallbacks: what already had to be given up, for the receipt.
        strict: refuse to read a memory as text, unless it is read to be kept.
    """

    messages: Sequence[PromptMessage]
    hits: tuple[Hit, ...]
    mode: Mode
    policy: Policy
    decoding: DecodeSettings
    started: float
    fallbacks: tuple[str, ...] = ()
    strict: bool = False


@dataclass
class Answerer:
    """Answers requests with one model and one namespace's states."""

    model: LoadedModel
    format: PromptFormat
    tree: StateTree
    find_state: FindState
    fingerprint: str
    refusal: str = ""

    def check_fit(self, segments: Sequence[Segment], max_tokens: int) -> None:
        """Raise `ContextOverflowError` unless the prompt and the answer fit the model's context."""
        length = sum(len(segment.ids) for segment in segments)
        if length + max_tokens > self.model.context_limit:
            raise ContextOverflowError(
                f"The prompt has {length} tokens and {max_tokens} are to be generated, but {self.model.name} has a "
                f"context of {self.model.context_limit}.",
                hint="Recall fewer memories (k), lower max_tokens, or pass overflow='drop'.",
            )

    def drop_until_fit(self, request: Request, question: str, system: str | None) -> Request:
        """`request` for a question in NNM's own layout, without the lowest ranked memories that do not fit."""
        hits = list(request.hits)
        dropped: list[str] = []
        while True:
            messages = question_prompt(question, [hit.memory for hit in hits], system)
            try:
                self.check_fit(self.format.segments(messages), request.decoding.max_tokens)
            except ContextOverflowError:
                if not hits:
                    raise
                dropped.append(f"{hits.pop().memory.id}: dropped, it did not fit the context")
                continue
            return replace(request, messages=messages, hits=tuple(hits), fallbacks=tuple(dropped))

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Decode the answer piece by piece; the last chunk carries the finished `Answer`.

        Raises:
            ContextOverflowError: the prompt is too long; nothing is ever cut.
            MemoryNotInjectedError: the request is strict and a memory has no state that can be used.
        """
        segments = self.format.segments(request.messages)
        self.check_fit(segments, request.decoding.max_tokens)
        plan = self.plan(segments, request)
        if request.strict:
            _refuse_text(plan)
        cache, logits = prefill(self.model, plan, room=request.decoding.max_tokens)
        pieces: list[str] = []
        tokens: list[int] = []
        first = 0.0
        for step in decode(self.model, cache, logits, request.decoding):
            if not tokens:
                first = time.perf_counter() - request.started
                if request.mode == "inject" and not self.refusal and not self._beyond_tables(plan.length):
                    keep_read(self.tree, plan, cache)
            tokens.append(step.token_id)
            pieces.append(step.text)
            if step.finish_reason is None:
                yield Chunk(step.text, (step.token_id,))
        receipt = self._receipt(request, plan, len(tokens), first)
        finish = step.finish_reason or "length"
        answer = Answer("".join(pieces), tuple(tokens), request.hits, receipt, finish)
        yield Chunk(step.text, (step.token_id,), answer)

    def plan(self, segments: Sequence[Segment], request: Request) -> Plan:
        """What is to happen to each segment."""
        if request.mode != "inject":
            return read_plan(segments, f"mode={request.mode!r} reads everything")
        if self.refusal:
            return read_plan(segments, self.refusal)
        if self._beyond_tables(sum(len(segment.ids) for segment in segments)):
            limit = self.model.positions.length_limit
            return read_plan(segments, f"this model's rotary tables change beyond {limit} positions")
        return make_plan(segments, request.policy, self._find_exact, self._find_any)

    def _beyond_tables(self, length: int) -> bool:
        """Whether a prompt is so long that all its tokens are rotated otherwise than those of shorter ones."""
        limit = self.model.positions.length_limit
        return limit is not None and length > limit

    def _find_exact(self, segment: Segment, left: str, start: int) -> PlacedState | None:
        node = self.tree.get(chain(left, segment.ids))
        if node is not None:
            return node.state
        if segment.memory is None:
            return None
        state = self._stored(segment)
        if state is None or state.left != left:
            return None
        try:
            return place(self.model, state, start)
        except PositionError as error:
            logger.debug("no exact state for memory %r: %s", segment.memory.id, error)
            return None

    def _find_any(self, segment: Segment, start: int) -> PlacedState | None:
        state = self._stored(segment)
        return None if state is None else place(self.model, state, start)

    def _stored(self, segment: Segment) -> State | None:
        """The stored state of a memory segment, cut to the segment's tokens (it may lack the separator)."""
        if segment.memory is None:
            return None
        state = self.find_state(segment.memory)
        length = len(segment.ids)
        return state.head(length) if state is not None and state.token_ids[:length] == segment.ids else None

    def _receipt(self, request: Request, plan: Plan, generated: int, first: float) -> Receipt:
        memories = {
            step.segment.memory.id: "read" if step.state is None else "injected"
            for step in plan.steps
            if step.segment.memory is not None
        }
        reasons = tuple(
            f"{step.segment.memory.id}: {step.reason}"
            for step in plan.steps
            if step.segment.memory is not None and step.reason and request.mode == "inject"
        )
        return Receipt(
            tier=plan.tier,
            tokens_injected=plan.tokens_injected,
            tokens_read=plan.tokens_read,
            tokens_recomputed=0,
            tokens_generated=generated,
            seconds_to_first_token=first,
            fingerprint=self.fingerprint,
            fallbacks=request.fallbacks + reasons,
            seconds_total=time.perf_counter() - request.started,
            memories=memories,
        )


def _refuse_text(plan: Plan) -> None:
    lost = [step for step in plan.steps if step.segment.memory is not None and step.reason not in ("", FIRST_TIME)]
    if lost:
        raise MemoryNotInjectedError(
            "; ".join(f"{step.segment.memory.id}: {step.reason}" for step in lost if step.segment.memory is not None),
            hint="Without strict=True its text is read as in ordinary prompting.",
        )
