"""Answers at the edges of what a model can hold: nothing is cut, nothing wrong is injected or kept."""

from __future__ import annotations

import time

import pytest
import torch
from tests.core.families import byte_tokenizer, make
from tests.core.model.test_positions import LONGROPE

from nnm_core.answering import Answerer, Request
from nnm_core.errors import ContextOverflowError
from nnm_core.injection.generate import DecodeSettings
from nnm_core.injection.tree import StateTree
from nnm_core.model.load import LoadedModel, wrap_model
from nnm_core.model.prompt import PromptFormat, question_prompt
from nnm_core.records import Answer, Hit, Memory, Mode
from nnm_core.states.capture import capture, place

MEMORY = Memory("bins", "The bins are collected on Tuesday.")


def answerer(model: LoadedModel) -> Answerer:
    prompts = PromptFormat(model.tokenizer)
    left = place(model, capture(model, [prompts.left_context(None)])[0], 0)
    state = capture(model, [prompts.memory_ids(MEMORY.text)], left)[0]
    return Answerer(model, prompts, StateTree(), lambda memory: state if memory == MEMORY else None, model.fingerprint)


def ask(answers: Answerer, question: str, *, mode: Mode = "inject", tokens: int = 8) -> Answer:
    request = Request(
        messages=question_prompt(question, [MEMORY], None),
        hits=(Hit(MEMORY, 1.0),),
        mode=mode,
        policy="exact",
        decoding=DecodeSettings(max_tokens=tokens),
        started=time.perf_counter(),
    )
    *_, last = answers.stream(request)
    assert last.answer is not None
    return last.answer


def reading(answers: Answerer, question: str, tokens: int) -> list[int]:
    segments = answers.format.segments(question_prompt(question, [MEMORY], None))
    row = torch.tensor([[token for segment in segments for token in segment.ids]])
    made = answers.model.hf.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, do_sample=False)
    return made[0, row.shape[1] :].tolist()


def test_injected_at_second_use_and_the_same_as_read() -> None:
    answers = answerer(wrap_model(make("llama", vocab_size=261), byte_tokenizer(), name="llama"))
    results = [ask(answers, "When?"), ask(answers, "When?"), ask(answers, "When?", mode="read")]
    assert [answer.receipt.tier for answer in results] == ["text", "exact", "text"]
    assert len({answer.token_ids for answer in results}) == 1
    assert list(results[0].token_ids) == reading(answers, "When?", 8)


def test_the_context_is_full_to_the_last_token_and_not_beyond() -> None:
    answers = answerer(wrap_model(make("llama", vocab_size=261), byte_tokenizer(), name="llama"))
    segments = answers.format.segments(question_prompt("", [MEMORY], None))
    room = 512 - sum(len(segment.ids) for segment in segments) - 8
    assert len(ask(answers, "x" * room).token_ids) >= 1
    with pytest.raises(ContextOverflowError, match="context of 512") as caught:
        ask(answers, "x" * (room + 1))
    assert caught.value.hint
    with pytest.raises(ContextOverflowError):
        ask(answers, "x" * room, tokens=9)


def test_prompts_beyond_the_tables_of_injected_states_are_read() -> None:
    """From 128 tokens on this model rotates every token otherwise, those of injected states too."""
    hf = make("phi3", vocab_size=261, rope_parameters=LONGROPE, original_max_position_embeddings=128)
    answers = answerer(wrap_model(hf, byte_tokenizer(), name="longrope"))
    ask(answers, "When?")
    known = len(answers.tree)
    short = ask(answers, "When?")
    assert short.receipt.tier == "exact"
    assert list(short.token_ids) == reading(answers, "When?", 8)
    question = "When? " * 20
    for _ in range(2):
        long = ask(answers, question)
        assert long.receipt.tier == "text"
        assert "change beyond 128" in long.receipt.fallbacks[0]
        assert list(long.token_ids) == reading(answers, question, 8)
    assert len(answers.tree) == known, "what was read with other tables is not kept"
    assert list(ask(answers, "When?").token_ids) == list(short.token_ids)
