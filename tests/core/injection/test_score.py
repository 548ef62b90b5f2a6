"""Scores of continuations against one plain forward pass by transformers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.core.reading import read_logits
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.errors import ContextOverflowError, InvalidInputError, MemoryNotFoundError
from nnm_core.model.prompt import question_prompt

WORDS = ["yes", "no", "unknown"]


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with NNM.open(tiny_reader()) as engine:
        engine.add(["the tide is high", "the moon is full"], ids=["a", "b"])
        yield engine


def plain(nnm: NNM, question: str, memories: list[str]) -> list[float]:
    """Sums of log-probabilities, each continuation in a forward pass of its own."""
    segments = nnm._format.segments(question_prompt(question, nnm.get(memories), nnm.system))
    prompt = [token for segment in segments for token in segment.ids]
    found = []
    for word in WORDS:
        ids = list(nnm._format.text_ids(word))
        rows = read_logits(nnm.model, [*prompt, *ids])[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(float(rows.gather(1, torch.tensor(ids)[:, None]).sum()))
    return found


@pytest.mark.parametrize("memories", [[], ["a"], ["a", "b"]])
def test_injected_and_read_scores_are_those_of_plain_passes(nnm: NNM, memories: list[str]) -> None:
    wanted = plain(nnm, "is it?", memories)
    for mode in ("inject", "read"):
        scores = nnm.score("is it?", WORDS, memories=memories, mode=mode)  # type: ignore[arg-type]
        assert list(scores.log_probs) == pytest.approx(wanted, abs=1e-3)
        assert scores.best == max(range(3), key=wanted.__getitem__)
        assert scores.receipt.tier == ("exact" if memories and mode == "inject" else "text")
        assert scores.receipt.tokens_generated == 0


def test_a_continuation_does_not_see_the_one_before_it(nnm: NNM) -> None:
    together = nnm.score("is it?", WORDS, memories=["a"]).log_probs
    backwards = nnm.score("is it?", WORDS[::-1], memories=["a"]).log_probs
    assert list(together) == pytest.approx(list(backwards[::-1]), abs=1e-4)


def test_composed_scores_have_their_own_tier(nnm: NNM) -> None:
    scores = nnm.score("is it?", WORDS, memories=["b", "a"], policy="fast", composer="concatenate")
    assert scores.receipt.tier == "composed"


def test_what_cannot_be_scored(nnm: NNM) -> None:
    with pytest.raises(InvalidInputError, match="continuation"):
        nnm.score("is it?", ["yes", ""])
    with pytest.raises(InvalidInputError, match="continuation"):
        nnm.score("is it?", [])
    with pytest.raises(InvalidInputError, match="question is empty"):
        nnm.score(" ", ["yes"])
    with pytest.raises(MemoryNotFoundError):
        nnm.score("is it?", ["yes"], memories=["absent"])
    with pytest.raises(ContextOverflowError):
        nnm.score("is it?", ["yes" * 200])
