"""Answers to several asks: each prompt read or loaded by the engine itself, the answers decoded side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nnm_core.evaluation.behind import Prompt, answers_behind
from nnm_core.evaluation.gates.core import Ask
from nnm_core.records import Answer, Receipt
from nnm_core.states.state import PlacedState

if TYPE_CHECKING:
    from nnm_core.answering import Request
    from nnm_core.engine import NNM
    from nnm_core.injection.compose import Composed


def answers(engine: NNM, asks: Sequence[Ask], max_tokens: int) -> list[Answer]:
    """The greedy answers, in order. A single one takes the engine's ordinary way.

    Of several, every prompt goes through the engine's plan and prefill by itself, which is what its receipt and its
    time to the first token are about. Then the last token of each prompt is read once more, in one batch, and decoded
    from there; a decoding step of a batch costs little more than one of a single answer. Its seconds are shared out
    evenly.
    """
    if not asks:
        return []
    if len(asks) == 1:
        return [_alone(engine, asks[0], max_tokens)]
    requests: list[Request] = []
    rows: list[Prompt] = []
    receipts: list[Receipt] = []
    for ask in asks:
        request = engine._request(**_arguments(ask), max_tokens=max_tokens)
        made, receipt = engine._answerer.prepared(request)
        requests.append(request)
        receipts.append(receipt)
        rows.append(row_of(made, engine._format.segments(request.messages)[-1].ids[-1]))
    started = time.perf_counter()
    decoded = answers_behind(engine.model, rows, max_tokens=max_tokens).token_ids
    share = (time.perf_counter() - started) / len(asks)
    return [
        _answer(engine, request, receipt, tokens, max_tokens, share)
        for request, receipt, tokens in zip(requests, receipts, decoded, strict=True)
    ]


def _alone(engine: NNM, ask: Ask, max_tokens: int) -> Answer:
    arguments = _arguments(ask)
    prompt = arguments.pop("prompt")
    return engine.answer(prompt, max_tokens=max_tokens, **arguments)


def _arguments(ask: Ask) -> dict[str, Any]:
    return {
        "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
        "memories": ask.memories,
        "mode": ask.mode,
        "policy": ask.policy,
        "composer": ask.composer,
    }


def row_of(made: Composed, last: int) -> Prompt:
    """A prefilled prompt without its last token, and that token, to be decoded in a batch."""
    length = made.cache.length - 1
    views = [layer.view() for layer in made.cache.placed]
    layers = tuple((keys[0, :, :length], values[0, :, :length]) for keys, values in views)
    return Prompt((PlacedState("", length, layers),), (last,))


def _answer(
    engine: NNM, request: Request, receipt: Receipt, tokens: tuple[int, ...], max_tokens: int, seconds: float
) -> Answer:
    stopped = len(tokens) < max_tokens
    text = engine.model.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    receipt = replace(
        receipt,
        tokens_generated=len(tokens) + stopped,
        seconds_total=receipt.seconds_to_first_token + seconds,
    )
    return Answer(str(text).lstrip(), tokens, request.hits, receipt, "stop" if stopped else "length")
