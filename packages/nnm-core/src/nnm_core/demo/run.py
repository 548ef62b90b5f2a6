"""Asking every question in every arm, in one process, side by side."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnm_core.demo.dataset import Passage, Question
from nnm_core.evaluation.answers import contains_answer, exact_match, f1
from nnm_core.evaluation.rag import ClassicRag, TextRetriever
from nnm_core.records import Answer, Memory, Policy

if TYPE_CHECKING:
    from nnm_core.engine import NNM

ARMS = {
    "bare": "bare model",
    "rag": "classic RAG",
    "nnm": "NNM",
    "random": "NNM, random memories",
}
Ask = Callable[[Question], Answer]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the arms answer.

    Attributes:
        k: passages or memories for each question, in every arm but the bare one.
        max_tokens: the longest answer.
        policy: what NNM may inject.
        seed: of the random memories.
    """

    k: int = 1
    max_tokens: int = 24
    policy: Policy = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One question in one arm.

    Attributes:
        arm: key of `ARMS`.
        question: what was asked.
        answer: what came back, with its receipt.
        right: whether a gold answer stands in the answer.
        found: whether the passage with the answer was among those given.
    """

    arm: str
    question: Question
    answer: Answer
    right: bool
    found: bool


def add_passages(engine: NNM, passages: Sequence[Passage]) -> list[Memory]:
    """Remember the passages under their own ids."""
    return engine.add(
        [passage.text for passage in passages],
        ids=[passage.id for passage in passages],
        metadatas=[{"title": passage.title} for passage in passages],
    )


def make_arms(engine: NNM, memories: Sequence[Memory], retriever: TextRetriever, settings: Settings) -> dict[str, Ask]:
    """The four ways to answer, by name."""
    rag = ClassicRag.over(engine, retriever, memories)
    chance = random.Random(settings.seed)  # noqa: S311 - a reproducible choice, no secret
    options: dict[str, Any] = {"max_tokens": settings.max_tokens}

    def bare(question: Question) -> Answer:
        return engine.answer(question.question, mode="bare", **options)

    def classic(question: Question) -> Answer:
        return rag.answer(question.question, k=settings.k, **options)

    def nnm(question: Question) -> Answer:
        return engine.answer(question.question, k=settings.k, policy=settings.policy, **options)

    def at_random(question: Question) -> Answer:
        others = [memory for memory in memories if memory.id != question.passage]
        chosen = chance.sample(others, settings.k)
        return engine.answer(question.question, memories=chosen, policy=settings.policy, **options)

    return {"bare": bare, "rag": classic, "nnm": nnm, "random": at_random}


def warm_up(engine: NNM, memories: Sequence[Memory], questions: Sequence[Question], retriever: TextRetriever) -> None:
    """Pay beforehand for what only the first call of a process pays for.

    The memory that is injected here answers no question, so none of the states that will be asked for is kept yet.
    """
    asked = {question.passage for question in questions}
    spare = next(memory for memory in memories if memory.id not in asked)
    retriever.search("warm up", 1)
    engine.search("warm up", 1)
    for mode in ("bare", "read", "inject"):
        engine.answer("What is this about?", memories=[spare], mode=mode, max_tokens=2)


def run(arms: dict[str, Ask], questions: Sequence[Question]) -> Iterator[Item]:
    """Ask each question in all arms, one after the other, so that a busy machine slows all of them alike."""
    for question in questions:
        for name, ask in arms.items():
            answer = ask(question)
            given = {hit.memory.id for hit in answer.hits} | set(answer.receipt.memories)
            yield Item(
                arm=name,
                question=question,
                answer=answer,
                right=contains_answer(answer.text, question.answers),
                found=question.passage in given,
            )


def summary(items: Sequence[Item], arm: str) -> dict[str, Any]:
    """The figures of one arm: counts, shares, means of tokens and medians of seconds."""
    mine = [item for item in items if item.arm == arm]
    receipts = [item.answer.receipt for item in mine]
    golds = [(item.answer.text, item.question.answers) for item in mine]
    return {
        "questions": len(mine),
        "right": sum(item.right for item in mine),
        "exact_match": statistics.fmean(exact_match(*pair) for pair in golds),
        "f1": statistics.fmean(f1(*pair) for pair in golds),
        "passage_found": sum(item.found for item in mine),
        "tokens_read": statistics.fmean(receipt.tokens_read for receipt in receipts),
        "tokens_injected": statistics.fmean(receipt.tokens_injected for receipt in receipts),
        "tokens_generated": statistics.fmean(receipt.tokens_generated for receipt in receipts),
        "seconds_to_first_token": statistics.median(receipt.seconds_to_first_token for receipt in receipts),
        "seconds_total": statistics.median(receipt.seconds_total for receipt in receipts),
        "tiers": sorted({receipt.tier for receipt in receipts}),
    }
