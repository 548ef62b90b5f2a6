"""Answers that decode together are what they would be alone."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import CancelledError

import pytest
from tests.core.families import loaded
from tests.core.tiny import tiny_reader

from nnm_core import NNM, ContextOverflowError, InvalidInputError, Message
from nnm_core.states.cache import PlacedCache

TEXTS = {
    "bins": "The bins are collected on Tuesday.",
    "ferry": "The ferry to the island leaves at six, and tickets are sold in the small house beside the pier.",
    "key": "The key hangs behind the door.",
}
QUESTIONS = ["When?", "Where is the key of the little house beside the sea?", "Who sells tickets?", "Why is it so?"]


def engine(family: str = "qwen3", **options: str) -> NNM:
    model = tiny_reader(family) if family in ("qwen3", "gemma3") else loaded(family)
    opened = NNM.open(model, **options)
    opened.add(list(TEXTS.values()), ids=list(TEXTS))
    return opened


@pytest.mark.parametrize("family", ["qwen3", "llama-yarn", "gpt-neox", "smollm3", "mixtral", "gemma3", "gpt2", "bloom"])
def test_a_batch_gives_the_answers_of_one_by_one(family: str) -> None:
    with engine(family) as nnm:
        for mode in ("inject", "read"):
            alone = [nnm.answer(q, k=2, max_tokens=12, mode=mode) for q in QUESTIONS]
            together = nnm.answer_batch(QUESTIONS, k=2, max_tokens=12, mode=mode)
            assert [a.token_ids for a in together] == [a.token_ids for a in alone]
            assert [a.text for a in together] == [a.text for a in alone]
            assert [[hit.memory for hit in a.hits] for a in together] == [[hit.memory for hit in a.hits] for a in alone]
            # Scores differ in the last digits from one search to the next: distances are sums of float32.
            assert [hit.score for a in together for hit in a.hits] == pytest.approx(
                [hit.score for a in alone for hit in a.hits], abs=1e-5
            )
            for one, other in zip(together, alone, strict=True):
                assert one.receipt.tier == other.receipt.tier
                assert one.receipt.tokens_generated == other.receipt.tokens_generated
                assert 0 < one.receipt.seconds_to_first_token <= one.receipt.seconds_total
        use = nnm.stats()["batches"]
        fixed = family in ("gemma3", "gpt2", "bloom")  # their masks are not the plain one
        assert (use["answers"], use["alone"]) == ((0, 8) if fixed else (8, 0))


def test_rows_stop_one_by_one_and_the_others_go_on() -> None:
    with engine() as nnm:
        whole = [nnm.answer(q, k=1, max_tokens=16).text for q in QUESTIONS]
        stop = [text[len(text) // 2 :][:2] for text in whole[:2]]
        alone = [nnm.answer(q, k=1, max_tokens=16, stop=stop) for q in QUESTIONS]
        together = nnm.answer_batch(QUESTIONS, k=1, max_tokens=16, stop=stop)
        assert [a.text for a in together] == [a.text for a in alone]
        assert [a.finish_reason for a in together] == [a.finish_reason for a in alone]
        assert len({len(a.token_ids) for a in together}) > 1


def test_sampling_composing_and_codecs_are_the_same_in_a_batch() -> None:
    with engine(codec="int8") as nnm:
        options = {"memories": ["bins", "ferry"], "policy": "fast", "temperature": 0.8, "seed": 7, "max_tokens": 10}
        alone = [nnm.answer(q, **options) for q in QUESTIONS]
        together = nnm.answer_batch(QUESTIONS, **options)
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        assert [a.receipt.tier for a in together] == [a.receipt.tier for a in alone]
        assert together[0].receipt.composer == alone[0].receipt.composer


def test_memory_is_bounded_by_tokens_and_shown() -> None:
    with engine() as nnm:
        nnm.answer_batch(QUESTIONS, k=1, max_tokens=4, batch_tokens=10_000)
        wide = nnm.stats()["batches"]
        assert wide["largest_rows"] == 4
    with engine() as nnm:
        answers = nnm.answer_batch(QUESTIONS, k=1, max_tokens=4, batch_tokens=600)
        narrow = nnm.stats()["batches"]
        assert len(answers) == 4 and narrow["largest_rows"] == 2
        assert 0 < narrow["largest_bytes"] < wide["largest_bytes"]


def test_chats_may_be_in_a_batch_and_nothing_is_answered_where_one_does_not_fit() -> None:
    with engine() as nnm:
        chats = [[Message("user", "When?")], "Where?"]
        assert [a.text for a in nnm.answer_batch(chats, max_tokens=4)] == [
            nnm.answer(c, max_tokens=4).text for c in chats
        ]
        with pytest.raises(ContextOverflowError):
            nnm.answer_batch(["When?", "x" * 600], max_tokens=4)
        assert nnm.answer_batch([]) == []
        with pytest.raises(InvalidInputError, match="batch_tokens"):
            nnm.answer_batch(["When?"], batch_tokens=0)


def test_a_rows_own_cache_is_freed_when_it_is_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[weakref.ref[PlacedCache]] = []
    alive: list[int] = []
    add = __import__("nnm_core.states.batch", fromlist=["BatchCache"]).BatchCache.add

    def watched(self, row: PlacedCache) -> None:  # type: ignore[no-untyped-def]
        gc.collect()
        alive.append(sum(cache() is not None for cache in caches))
        caches.append(weakref.ref(row))
        add(self, row)

    monkeypatch.setattr("nnm_core.states.batch.BatchCache.add", watched)
    with engine() as nnm:
        nnm.answer_batch(QUESTIONS, k=1, max_tokens=4)
    assert alive == [0, 0, 0, 0]


def test_answers_with_options_of_their_own_finish_together() -> None:
    with engine() as nnm, engine() as other:
        options = [
            {"max_tokens": 5},
            {"max_tokens": 9, "mode": "read"},
            {"temperature": 0.8, "seed": 3, "max_tokens": 7},
        ]
        alone = [nnm.answer(q, k=2, **own) for q, own in zip(QUESTIONS, options, strict=False)]  # type: ignore[arg-type]  # mixed
        begun = [nnm.stream(q, k=2, **own) for q, own in zip(QUESTIONS, options, strict=False)]  # type: ignore[arg-type]  # mixed
        together = nnm.finish(begun)
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        assert nnm.stats()["batches"]["largest_rows"] == 3
        assert nnm.finish([]) == []
        with pytest.raises(InvalidInputError, match="another engine"):
            nnm.finish([other.stream("When?", k=1)])


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])  # together, and one by one
def test_nobody_decodes_what_is_not_wanted_any_more(family: str) -> None:
    with engine(family) as nnm:
        asked = 0

        def wanted() -> bool:
            nonlocal asked
            asked += 1
            return asked < 6

        with pytest.raises(CancelledError):
            nnm.finish([nnm.stream(q, k=1, max_tokens=40) for q in QUESTIONS[:2]], wanted=wanted)
        assert asked == 6
        assert nnm.answer("When?", k=1, max_tokens=4).text == nnm.answer("When?", k=1, max_tokens=4).text
