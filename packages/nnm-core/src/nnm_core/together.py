"""Several prompts answered together: each is loaded and read by itself, then all decode in one pass a token.

Rows are padded on the right and have their own positions and masks, so that every answer is what it would be alone.
States are copied once, into the batch's cache; placed states in the tree and stored ones are shared by all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nnm_core.answering import Answerer, Request
from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose import Composed
from nnm_core.injection.compose.parallel import Parallel
from nnm_core.injection.generate import Decoded, Decoder
from nnm_core.injection.plan import Plan
from nnm_core.injection.settings import AS_READ
from nnm_core.injection.static import unfit
from nnm_core.records import Answer, Chunk, Message
from nnm_core.states.batch import BatchCache
from nnm_core.states.cache import PlacedCache

DEFAULT_TOKENS = 16_384


class Answering(Iterator[Chunk]):
    """An answer that is decoded as it is iterated over, and the request that it answers."""

    def __init__(self, answerer: Answerer, request: Request) -> None:
        self.answerer, self.request = answerer, request
        self._chunks = answerer.stream(request)

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """Give up what is not decoded yet."""
        self._chunks.close()


@dataclass
class BatchUse:
    """What batches have taken so far, for `NNM.stats`.

    Attributes:
        answers: answers decoded in batches.
        alone: answers of `NNM.answer_batch` that could not be.
        largest_rows, largest_bytes: of one batch.
    """

    answers: int = 0
    alone: int = 0
    largest_rows: int = 0
    largest_bytes: int = 0


class BatchFace:
    """Answering several questions at once."""

    _answerer: Answerer
    stream: Callable[..., Answering]

    def answer_batch(
        self, questions: Sequence[str | Sequence[Message]], *, batch_tokens: int = DEFAULT_TOKENS, **options: Any
    ) -> list[Answer]:
        """Answer several questions; they decode together, and each answer is what it would be alone.

        Args:
            questions: as of `NNM.stream`.
            batch_tokens: most tokens that a batch's cache may hold, padding included; a longer prompt stands alone.
            **options: as of `NNM.stream`, for all of them.
        """
        return self.finish([self.stream(question, **options) for question in questions], batch_tokens=batch_tokens)

    def finish(
        self,
        answers: Sequence[Answering],
        *,
        batch_tokens: int = DEFAULT_TOKENS,
        wanted: Callable[[], bool] = lambda: True,
    ) -> list[Answer]:
        """The finished answers of several streams that nobody has begun to read; they decode together.

        Args:
            answers: of `stream` of this engine, each with its own options.
            batch_tokens: as of `answer_batch`.
            wanted: asked before each token; the work ends when it says no.

        Raises:
            InvalidInputError: one of them is another engine's.
            CancelledError: the answers are not wanted any more.
            NNMError: one of them cannot be answered; none is finished then.
        """
        if batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens is {batch_tokens}.", hint="Allow at least one token.")
        if any(answer.answerer is not self._answerer for answer in answers):
            raise InvalidInputError("These are answers of another engine.", hint="Finish each with its own engine.")
        requests = [answer.request for answer in answers]
        return answer_together(self._answerer, requests, self._batch_use, batch_tokens=batch_tokens, wanted=wanted)

    @cached_property
    def _batch_use(self) -> BatchUse:
        return BatchUse()


@dataclass
class _Row:
    """One prompt of a batch, under way."""

    request: Request
    plan: Plan
    made: Composed
    decoder: Decoder
    first: float
    steps: list[Decoded] = field(default_factory=list)

    @property
    def going_on(self) -> bool:
        return self.steps[-1].finish_reason is None


def answer_together(
    answerer: Answerer,
    requests: Sequence[Request],
    use: BatchUse,
    *,
    batch_tokens: int = DEFAULT_TOKENS,
    wanted: Callable[[], bool] = lambda: True,
) -> list[Answer]:
    """Answer all requests, in batches whose caches hold at most `batch_tokens` tokens (or one prompt).

    Models whose passes need another mask than the plain causal one, answers with a strength of their own, memories at
    parallel positions, and states that lack tokens or layers are answered one by one.

    Raises:
        CancelledError: `wanted` says that nobody waits for them any more.
        Others: see `Answerer.stream`; then nothing is answered.
    """
    lengths = [_length(answerer, request) for request in requests]
    found: dict[int, Answer] = {}
    fit = answerer.whole and not unfit(answerer.model)
    plain = [r.injection == AS_READ and not isinstance(r.composer, Parallel) for r in requests]
    together = [index for index, alike in enumerate(plain) if fit and alike]
    for group in _groups(sorted(together, key=lambda i: lengths[i]), lengths, batch_tokens):
        answers = _batch(answerer, [requests[i] for i in group], max(lengths[i] for i in group), use, wanted)
        found.update(zip(group, answers, strict=True))
    for index, request in enumerate(requests):
        if index not in found:
            use.alone += 1
            for chunk in answerer.stream(request):
                _go_on(wanted)
                if chunk.answer is not None:
                    found[index] = chunk.answer
    return [found[index] for index in range(len(requests))]


def _length(answerer: Answerer, request: Request) -> int:
    """Places that a request takes at most; also refuses those that do not fit before anything is computed."""
    segments = answerer.format.segments(request.messages)
    answerer.check_fit(segments, request.decoding.max_tokens, request.budget)
    return sum(len(segment.ids) for segment in segments) + request.decoding.max_tokens


def _groups(order: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Neighbours in `order` (by length) whose padded rows take at most so many places."""
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * lengths[index] > most:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _go_on(wanted: Callable[[], bool]) -> None:
    if not wanted():
        raise CancelledError("nobody waits for these answers any more")


@torch.inference_mode()
def _batch(
    answerer: Answerer, requests: Sequence[Request], capacity: int, use: BatchUse, wanted: Callable[[], bool]
) -> list[Answer]:
    cache = BatchCache(answerer.model.layers, len(requests), capacity)
    rows = []
    for request in requests:
        _go_on(wanted)
        rows.append(_begun(answerer, request, cache))
    use.answers += len(rows)
    use.largest_rows = max(use.largest_rows, len(rows))
    use.largest_bytes = max(use.largest_bytes, cache.nbytes())
    active = rows
    while True:
        kept = [index for index, row in enumerate(active) if row.going_on]
        if not kept:
            break
        if len(kept) < len(active):
            cache.keep(kept)
            active = [active[index] for index in kept]
        _go_on(wanted)
        logits = _pass(answerer, cache, [row.steps[-1].token_id for row in active])
        for row, scores in zip(active, logits, strict=True):
            row.steps.append(row.decoder.step(scores))
    return [_answer(answerer, row) for row in rows]


def _begun(answerer: Answerer, request: Request, cache: BatchCache) -> _Row:
    """Load and read one prompt, and choose its first token."""
    plan, made = answerer.begin(request)
    decoder = Decoder(answerer.model, request.decoding, made.logits.device)
    step = decoder.step(made.logits)
    first = time.perf_counter() - request.started
    answerer.keep(request, plan, made)
    cache.add(made.cache)
    light = Composed(PlacedCache(0), made.logits, made.recomputed)  # its states are in the batch now
    return _Row(request, plan, light, decoder, first, [step])


def _pass(answerer: Answerer, cache: BatchCache, tokens: Sequence[int]) -> Tensor:
    """Logits [rows, vocabulary] behind one more token of each row."""
    model, places = answerer.model, cache.places
    output = model.hf(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        position_ids=places.filled[:, None],
        attention_mask=places.mask(model.dtype),
        past_key_values=cache,
        use_cache=True,
    )
    cache.advance()
    logits: Tensor = output.logits[:, -1]
    return logits


def _answer(answerer: Answerer, row: _Row) -> Answer:
    tokens = tuple(step.token_id for step in row.steps)
    receipt = answerer.receipt(row.request, row.plan, row.made, len(tokens), row.first)
    text = "".join(step.text for step in row.steps)
    return Answer(text, tokens, row.request.hits, receipt, row.steps[-1].finish_reason or "length")
