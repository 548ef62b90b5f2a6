"""From a prompt to an answer: plan, load, read, decode, and say in a receipt what was done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from nnm_core.errors import ContextOverflowError, InvalidInputError, MemoryNotInjectedError, PositionError
from nnm_core.injection.compose import Composed, Composer, Composition, composer
from nnm_core.injection.compose.concatenate import Concatenate
from nnm_core.injection.generate import DecodeSettings, decode
from nnm_core.injection.plan import FIRST_TIME, Plan, Step, make_plan, read_plan
from nnm_core.injection.planner import Planner
from nnm_core.injection.prefill import keep_read, prefill
from nnm_core.injection.settings import AS_READ, InjectionSettings
from nnm_core.injection.strength import Scaled, during, scaled
from nnm_core.injection.tree import StateTree
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import PromptFormat, PromptMessage, Segment, question_prompt
from nnm_core.records import Answer, Chunk, Hit, Memory, MemoryUse, Mode, Order, Policy, Receipt
from nnm_core.states.capture import place
from nnm_core.states.state import NATIVE, PlacedState, State, chain

logger = logging.getLogger(__name__)

# The stored state of a memory, or None if there is none that this model can use.
FindState = Callable[[Memory], State | None]


def in_order(memories: Sequence[Memory], order: Order) -> list[Memory]:
    """The memories in the order in which they are put into a prompt: as ranked, or by id."""
    return sorted(memories, key=lambda memory: memory.id) if order == "canonical" else list(memories)


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
        composer: how states of other left contexts are placed side by side.
        order: how the memories of a question are ordered.
        injection: how strongly and in which layers the memories are felt.
        budget: tokens that the prompt may have at most; None for what the model's context has room for.
        fused: compose from the states that were computed behind a memory's neighbours, where there are any.
    """

    messages: Sequence[PromptMessage]
    hits: tuple[Hit, ...]
    mode: Mode
    policy: Policy
    decoding: DecodeSettings
    started: float
    fallbacks: tuple[str, ...] = ()
    strict: bool = False
    composer: Composer = field(default_factory=composer)
    order: Order = "ranked"
    injection: InjectionSettings = AS_READ
    budget: int | None = None
    fused: bool = False


@dataclass
class Answerer:
    """Answers requests with one model and one namespace's states.

    Attributes:
        fingerprint: for the receipts.
        refusal: why this model's states may not be injected at all; empty if they may.
        whole: whether stored states hold all layers of all their tokens (`nnm_core.states.codecs.Codec`).
        planner: what is known about costs on this machine and quality on these memories; ``auto`` composes only where
            that is enough, and nothing is loaded that is read faster.
        find_fused: as `find_state`, the second state that was computed behind the memory's neighbours.
    """

    model: LoadedModel
    format: PromptFormat
    tree: StateTree
    find_state: FindState
    fingerprint: str
    refusal: str = ""
    whole: bool = True
    planner: Planner = field(default_factory=Planner)
    find_fused: FindState = lambda memory: None

    def check_fit(self, segments: Sequence[Segment], max_tokens: int, budget: int | None = None) -> None:
        """Raise `ContextOverflowError` unless prompt and answer fit the model's context, and the prompt its budget."""
        length = sum(len(segment.ids) for segment in segments)
        if budget is not None and length > budget:
            raise ContextOverflowError(
                f"The prompt has {length} tokens, more than its budget of {budget}.",
                hint="Recall fewer memories (k), or raise the budget.",
            )
        if length + max_tokens > self.model.context_limit:
            raise ContextOverflowError(
                f"The prompt has {length} tokens and {max_tokens} are to be generated, but {self.model.name} has a "
                f"context of {self.model.context_limit}.",
                hint="Recall fewer memories (k) or shorter ones, or lower max_tokens; for a question of its own, "
                "NNM.answer(overflow='drop') leaves out the lowest ranked.",
            )

    def drop_until_fit(self, request: Request, question: str, system: str | None) -> Request:
        """`request` for a question in NNM's own layout, without the lowest ranked memories that do not fit."""
        hits = list(request.hits)
        dropped: list[str] = []
        while True:
            messages = question_prompt(question, in_order([hit.memory for hit in hits], request.order), system)
            try:
                self.check_fit(self.format.segments(messages), request.decoding.max_tokens, request.budget)
            except ContextOverflowError:
                if not hits:
                    raise
                dropped.append(f"{hits.pop().memory.id}: dropped, it did not fit the context")
                continue
            return replace(request, messages=messages, hits=tuple(hits), fallbacks=tuple(dropped))

    def stream(self, request: Request) -> Generator[Chunk, None, None]:
        """Decode the answer piece by piece; the last chunk carries the finished `Answer`.

        Raises:
            ContextOverflowError: the prompt is too long; nothing is ever cut.
            MemoryNotInjectedError: the request is strict and a memory has no state that can be used.
        """
        plan, made = self.begin(request)
        pieces: list[str] = []
        tokens: list[int] = []
        first = 0.0
        for step in decode(self.model, made.cache, made.logits, request.decoding):
            if not tokens:
                first = time.perf_counter() - request.started
                self.keep(request, plan, made)
            tokens.append(step.token_id)
            pieces.append(step.text)
            if step.finish_reason is None:
                yield Chunk(step.text, (step.token_id,))
        receipt = self.receipt(request, plan, made, len(tokens), first)
        finish = step.finish_reason or "length"
        answer = Answer("".join(pieces), tuple(tokens), request.hits, receipt, finish)
        yield Chunk(step.text, (step.token_id,), answer)

    def begin(self, request: Request) -> tuple[Plan, Composed]:
        """Plan a prompt and fill a cache with it, ready to be continued. See `stream`."""
        segments = self.format.segments(request.messages)
        self.check_fit(segments, request.decoding.max_tokens, request.budget)
        plan = self.plan(segments, request)
        if request.strict:
            _refuse_text(plan)
        steering = self._steering(plan, request)
        with during(steering):
            made = self._prefill(plan, request)
        if steering is not None:
            made.cache.intervention = steering
        return plan, made

    def keep(self, request: Request, plan: Plan, made: Composed) -> None:
        """Put what was read for this prompt into the tree, where it may be used again."""
        if request.mode == "inject" and not self.refusal and not self._beyond_tables(plan.length):
            keep_read(self.tree, plan, made.cache)

    def prepared(self, request: Request) -> tuple[Composed, Receipt]:
        """The prompt of a request, ready to be continued, and the receipt of what was done for it.

        Raises:
            ContextOverflowError: the prompt is too long; nothing is ever cut.
        """
        plan, made = self.begin(request)
        return made, self.receipt(request, plan, made, 0, time.perf_counter() - request.started)

    def plan(self, segments: Sequence[Segment], request: Request) -> Plan:
        """What is to happen to each segment."""
        if request.mode != "inject":
            return read_plan(segments, f"mode={request.mode!r} reads everything")
        if self.refusal:
            return read_plan(segments, self.refusal)
        if self._beyond_tables(sum(len(segment.ids) for segment in segments)):
            limit = self.model.positions.length_limit
            return read_plan(segments, f"this model's rotary tables change beyond {limit} positions")
        refusal = request.composer.refusal(self.model)
        known = self.planner.agreement(request.composer.name) or 0.0
        compose = request.policy == "fast" or known >= self.planner.bound
        planned = partial(
            make_plan,
            segments,
            request.policy,
            self._find_lossless if request.policy == "exact" else self._find_exact,
            partial(self._find_any, fused=request.fused),
            read_instead=None if request.strict else self._read_instead,
        )
        plan = planned(compose=compose and not refusal, reason=refusal if compose and refusal else FIRST_TIME)
        gaps = any(step.state is not None and step.state.skipped for step in plan.steps)
        if plan.composed and gaps and not isinstance(request.composer, Concatenate):
            return planned(compose=False, reason=f"{request.composer.name} cannot work beside left-out tokens")
        return plan

    def _steering(self, plan: Plan, request: Request) -> Scaled | None:
        """What intervenes in this answer. Composers that compute tokens again do so in passes of another layout."""
        request.injection.check(self.model)
        found = scaled(plan, request.injection, self.model)
        if found is not None and any(step.state is not None and step.state.skipped for step in plan.steps):
            raise InvalidInputError(
                "Strength and layers cannot be set for memories of which tokens were left out.",
                hint="Use policy='exact', or a codec without keep=.",
            )
        if found is not None and plan.composed and not isinstance(request.composer, Concatenate):
            raise InvalidInputError(
                f"Strength and layers cannot be set together with the composer {request.composer.name!r}.",
                hint="Use composer='concatenate', or policy='exact'.",
            )
        return found

    def _read_instead(self, segment: Segment, name: str, composed: bool) -> str:
        """Why a memory is better read, though it may be loaded; what lies placed in RAM is always loaded."""
        if name in self.tree:
            return ""
        return self.planner.read_instead(len(segment.ids), composed=composed)

    def _prefill(self, plan: Plan, request: Request) -> Composed:
        """Carry out the plan; only a prompt in which something was moved needs the composer."""
        room = request.decoding.max_tokens
        if not plan.composed:
            return Composed(*prefill(self.model, plan, room=room))
        stored = partial(self._stored, fused=request.fused)
        return request.composer.prefill(Composition(self.model, plan, room, stored))

    def pin(self, messages: Sequence[PromptMessage]) -> int:
        """Read a prompt's memories behind each other where that has not been done, and pin them; see `NNM.pin`."""
        segments = self.format.segments(messages)
        self.check_fit(segments, 1)
        if self.refusal or self._beyond_tables(sum(len(segment.ids) for segment in segments)):
            reason = self.refusal or "together they are longer than this model's rotary tables stay the same"
            raise InvalidInputError(f"These memories cannot be pinned: {reason}.")
        plan = make_plan(segments, "exact", self._find_lossless, self._find_any)
        cache, _ = prefill(self.model, plan, room=1)
        steps = plan.steps[:-1]
        names = [step.name for step in steps]
        others = self.tree.nbytes_of(self.tree.pinned.difference(names))
        wanted = cache.nbytes() // cache.placed[0].capacity * sum(len(step.segment.ids) for step in steps)
        if others + wanted > self.tree.budget:
            raise InvalidInputError(
                f"These memories take {wanted:,} bytes; {self.tree.budget - others:,} can be pinned in RAM.",
                hint="Open with a larger state_cache, or unpin others.",
            )
        keep_read(self.tree, plan, cache, pin=True)
        return self.tree.nbytes_of(names)

    def unpin(self, messages: Sequence[PromptMessage]) -> None:
        """Unpin a prompt's memories; the left context stays."""
        steps = read_plan(self.format.segments(messages)).steps
        self.tree.unpin(step.name for step in steps if step.segment.memory is not None)

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

    def _find_lossless(self, segment: Segment, left: str, start: int) -> PlacedState | None:
        """As `_find_exact`, but nothing that a lossy codec has touched."""
        state = self._find_exact(segment, left, start)
        return state if state is not None and state.origin.lossless else None

    def _find_any(self, segment: Segment, start: int, *, fused: bool = False) -> PlacedState | None:
        state = self._stored(segment, fused=fused)
        # Composers know nothing of lower layers that have to be masked, and of gaps.
        whole = state is not None and not state.origin.first_layer and state.kept is None
        return place(self.model, state, start) if state is not None and whole else None

    def _stored(self, segment: Segment, *, fused: bool = False) -> State | None:
        """The stored state of a memory segment, cut to the segment's tokens (it may lack the separator).

        Args:
            fused: the one that was computed behind its neighbours, if there is one.
        """
        if segment.memory is None:
            return None
        state = self.find_fused(segment.memory) if fused else None
        if state is None:
            state = self.find_state(segment.memory)
        length = len(segment.ids)
        return state.head(length) if state is not None and state.token_ids[:length] == segment.ids else None

    def receipt(self, request: Request, plan: Plan, made: Composed, generated: int, first: float) -> Receipt:
        """What was done for this prompt."""
        parts = tuple(
            self._use(step, step.segment.memory, request, made.recomputed.get(index, 0))
            for index, step in enumerate(plan.steps)
            if step.segment.memory is not None
        )
        return Receipt(
            tier=plan.tier,
            tokens_injected=plan.tokens_injected,
            tokens_read=plan.tokens_read,
            tokens_recomputed=_recomputed(plan, made),
            tokens_generated=generated,
            seconds_to_first_token=first,
            fingerprint=self.fingerprint,
            fallbacks=request.fallbacks + tuple(f"{part.id}: {part.reason}" for part in parts if part.reason),
            seconds_total=time.perf_counter() - request.started,
            memories={part.id: "read" if part.action == "read" else "injected" for part in parts},
            parts=parts,
            composer=request.composer.name if plan.composed else "",
        )

    def _use(self, step: Step, memory: Memory, request: Request, recomputed: int) -> MemoryUse:
        origin = NATIVE if step.state is None else step.state.origin
        known: float | None = 1.0
        if origin.fused:
            known = None  # composers are measured on states that were computed alone
        elif step.tier in ("composed", "compressed"):
            known = self.planner.agreement(request.composer.name if step.tier == "composed" else origin.codec)
        return MemoryUse(
            id=memory.id,
            action=step.action,
            tier=step.tier,
            codec="" if step.state is None else origin.codec,
            tokens=len(step.segment.ids),
            recomputed=max(recomputed, origin.recomputed),
            expected_agreement=known,
            nbytes=0 if step.state is None else origin.nbytes or step.state.nbytes,
            seconds=step.seconds,
            reason=step.reason if request.mode == "inject" else "",
            fused=origin.fused,
        )


def _recomputed(plan: Plan, made: Composed) -> int:
    """Tokens computed again by the composer, and by codecs where it has not done so anyway."""
    decoded = sum(
        step.state.origin.recomputed
        for index, step in enumerate(plan.steps)
        if step.state is not None and index not in made.recomputed
    )
    return sum(made.recomputed.values()) + decoded


def _refuse_text(plan: Plan) -> None:
    lost = [step for step in plan.steps if step.segment.memory is not None and step.reason not in ("", FIRST_TIME)]
    if lost:
        raise MemoryNotInjectedError(
            "; ".join(f"{step.segment.memory.id}: {step.reason}" for step in lost if step.segment.memory is not None),
            hint="Without strict=True its text is read as in ordinary prompting.",
        )
