"""Canonical order, pinned chains, and what receipts say about each memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM, Message
from nnm_core.errors import InvalidInputError, MemoryNotFoundError
from nnm_core.injection.planner import Planner, Quality

TEXTS = {"c": "The bins go on Tuesday.", "a": "Paper is collected on Friday.", "b": "Glass is on Monday."}


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with NNM.open(tiny_reader()) as engine:
        engine.add(list(TEXTS.values()), ids=list(TEXTS))
        yield engine


def test_a_canonical_order_makes_the_second_answer_exact_whatever_the_ranking(nnm: NNM) -> None:
    for order, tier in (("ranked", "exact"), ("canonical", "exact")):
        first = nnm.answer("When?", memories=["c", "a", "b"], order=order, max_tokens=2)
        again = nnm.answer("Where?", memories=["b", "c", "a"], order=order, max_tokens=2)
        assert again.receipt.tier == tier
        same = [part.id for part in first.receipt.parts] == [part.id for part in again.receipt.parts]
        injected = sum(part.action == "exact" for part in again.receipt.parts)
        assert (same, injected) == ((False, 1) if order == "ranked" else (True, 3))
    assert [part.id for part in again.receipt.parts] == ["a", "b", "c"]
    assert [hit.memory.id for hit in again.hits] == ["b", "c", "a"], "the ranking itself is told as it was"


def test_the_canonical_order_holds_in_chat_prompts_and_when_memories_are_dropped(nnm: NNM) -> None:
    turns = [Message("user", "When?")]
    answer = nnm.answer(turns, memories=["c", "a"], order="canonical", max_tokens=2)
    assert [part.id for part in answer.receipt.parts] == ["a", "c"]
    whole = nnm.answer("x", memories=["c", "b", "a"], max_tokens=60).receipt
    question = "x" * (512 - 60 - whole.tokens_injected - whole.tokens_read + 5)
    answer = nnm.answer(question, memories=["c", "b", "a"], order="canonical", overflow="drop", max_tokens=60)
    assert [part.id for part in answer.receipt.parts] == ["b", "c"], "the lowest ranked is dropped, not the last"
    assert answer.receipt.fallbacks[0].startswith("a: dropped")


def test_an_unknown_order_or_composer_is_refused(nnm: NNM) -> None:
    with pytest.raises(InvalidInputError, match="order is 'best'"):
        nnm.answer("When?", order="best")
    with pytest.raises(InvalidInputError, match="no composer 'glue'") as caught:
        nnm.answer("When?", composer="glue")
    assert "concatenate" in (caught.value.hint or "")


def test_the_receipt_tells_what_was_done_with_each_memory(nnm: NNM) -> None:
    read = nnm.answer("When?", memories=["a", "b"], mode="read", max_tokens=2).receipt
    assert [(part.action, part.tier, part.codec, part.nbytes) for part in read.parts] == [("read", "text", "", 0)] * 2
    first = nnm.answer("When?", memories=["a", "b"], max_tokens=2).receipt
    assert [part.action for part in first.parts] == ["exact", "read"]
    one, two = first.parts
    assert one.codec == "native"
    assert one.expected_agreement == two.expected_agreement == 1.0
    assert one.nbytes == one.tokens * 4 * 2 * 2 * 16 * 4, "layers x (keys, values) x heads x width x float32"
    assert one.seconds > 0
    assert "kept for the next time" in two.reason
    assert first.fallbacks == (f"b: {two.reason}",)
    assert (first.composer, first.memories) == ("", {"a": "injected", "b": "read"})


def test_a_composed_memory_says_so_and_its_agreement_is_unknown_until_measured(nnm: NNM) -> None:
    receipt = nnm.answer("When?", memories=["a", "b"], policy="fast", composer="concatenate", max_tokens=2).receipt
    assert [(part.action, part.tier) for part in receipt.parts] == [("exact", "exact"), ("composed", "composed")]
    assert receipt.composer == "concatenate"
    assert receipt.parts[1].expected_agreement is None
    assert receipt.tokens_recomputed == 0


@pytest.mark.parametrize(("measured", "action"), [(None, "read"), (0.5, "read"), (0.95, "composed")])
def test_auto_composes_only_where_the_agreement_is_known_to_be_high(
    nnm: NNM, measured: float | None, action: str
) -> None:
    if measured is not None:
        known = Quality(measured, kl=0.1, f1=0.8, f1_read=1.0, prompts=4, tokens=96, kind="composer")
        nnm.planner = Planner(quality={"concatenate": known})
    receipt = nnm.answer("When?", memories=["a", "b"], composer="concatenate", max_tokens=2).receipt
    assert receipt.parts[1].action == action
    assert receipt.parts[1].expected_agreement == (measured if action == "composed" else 1.0)


def test_a_pinned_chain_is_exact_at_first_use_and_stays(nnm: NNM) -> None:
    nbytes = nnm.pin(["c", "a"])
    assert nbytes > 0
    assert nnm.stats()["bytes_state_cache_pinned"] >= nbytes
    receipt = nnm.answer("When?", memories=["c", "a", "b"], max_tokens=2).receipt
    assert [part.action for part in receipt.parts] == ["exact", "exact", "read"]
    nnm._tree.budget = nnm._tree.nbytes_of(nnm._tree.pinned)  # no room for anything else
    nnm.answer("When?", memories=["b", "a"], max_tokens=2)
    receipt = nnm.answer("When?", memories=["c", "a"], max_tokens=2).receipt
    assert [part.action for part in receipt.parts] == ["exact", "exact"]
    nnm.unpin(["c", "a"])
    nnm.answer("When?", memories=["b", "a", "c"], max_tokens=2)
    assert nnm.stats()["bytes_state_cache"] <= nnm._tree.budget


def test_forgetting_a_memory_forgets_its_pinned_states(nnm: NNM) -> None:
    nnm.pin(["c", "a"])
    before = nnm.stats()["bytes_state_cache_pinned"]
    nnm.forget("c")
    assert nnm.stats()["bytes_state_cache_pinned"] < before
    nnm.answer("When?", memories=["a"], max_tokens=2)


def test_what_does_not_fit_is_not_pinned_and_nothing_is_lost(nnm: NNM) -> None:
    nnm.answer("When?", memories=["c"], max_tokens=2)
    nnm._tree.budget = nnm._tree.nbytes + 10
    before = nnm.stats()["bytes_state_cache"]
    with pytest.raises(InvalidInputError, match="can be pinned") as caught:
        nnm.pin(["c", "a", "b"])
    assert "state_cache" in (caught.value.hint or "")
    assert nnm.stats()["bytes_state_cache"] == before
    with pytest.raises(MemoryNotFoundError):
        nnm.pin("nobody")
    with pytest.raises(InvalidInputError, match="no memories to pin"):
        nnm.pin([])


def test_the_state_cache_counts_its_use(nnm: NNM) -> None:
    nnm.answer("When?", memories=["c"], max_tokens=2)
    stats = nnm.stats()
    nnm.answer("When?", memories=["c"], max_tokens=2)
    assert nnm.stats()["state_cache_hits"] >= stats["state_cache_hits"] + 2, "left context and memory"
    assert stats["bytes_state_cache_budget"] == nnm._tree.budget
