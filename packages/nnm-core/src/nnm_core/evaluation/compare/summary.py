"""The figures of an arm: means with bootstrap intervals, the paired tests against classic RAG, costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nnm_core.evaluation.compare.items import Item
from nnm_core.evaluation.statistics import bootstrap, mcnemar, paired_bootstrap

BASE = "rag"
CONTROL = "read"
_READ_ARMS = ("rag", "rag_recall", "read")


def summarise(
    items: Sequence[Item], arm: str, *, stored: Mapping[str, int], ingest: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of `arm`.

    Quality is over the questions with a gold answer, each counted once; the other figures over all. Differences are
    paired by question. Tokens are means, seconds medians.

    Args:
        items: of all arms.
        arm: which one.
        stored: bytes by kind (`run.bytes_stored`).
        ingest: seconds until the first question could be asked, for ``rag`` and ``nnm``.
    """
    mine = [item for item in items if item.arm == arm]
    receipts = [item.answer.receipt for item in mine]
    figures: dict[str, Any] = {"questions": len(mine), **quality(mine)}
    figures |= {
        "supported": statistics.fmean(item.supported for item in mine),
        "passage_found": sum(item.found for item in mine),
        "tokens_read": statistics.fmean(receipt.tokens_read for receipt in receipts),
        "tokens_injected": statistics.fmean(receipt.tokens_injected for receipt in receipts),
        "tokens_recomputed": statistics.fmean(receipt.tokens_recomputed for receipt in receipts),
        "tokens_generated": statistics.fmean(receipt.tokens_generated for receipt in receipts),
        "seconds_to_first_token": statistics.median(receipt.seconds_to_first_token for receipt in receipts),
        "seconds_total": statistics.median(receipt.seconds_total for receipt in receipts),
        "tiers": sorted({receipt.tier for receipt in receipts}),
        "bytes_stored": _bytes(arm, stored),
        "ingest_seconds": 0.0 if arm == "bare" else ingest["rag" if arm == "rag" else "nnm"],
    }
    figures |= against(items, arm)
    return figures


def quality(items: Sequence[Item]) -> dict[str, Any]:
    """Right answers, EM, F1 and gold given, with intervals, over the items with gold answers."""
    judged = [item for item in items if item.question.answers]
    if not judged:
        return {"judged": 0, "right": 0, "exact_match": None, "f1": None, "gold_given": None}
    exact, overlap = bootstrap([item.exact_match for item in judged]), bootstrap([item.f1 for item in judged])
    return {
        "judged": len(judged),
        "right": sum(item.right for item in judged),
        "exact_match": exact.mean,
        "exact_match_interval": [exact.low, exact.high],
        "f1": overlap.mean,
        "f1_interval": [overlap.low, overlap.high],
        "gold_given": statistics.fmean(item.gold_given for item in judged),
    }


def against(items: Sequence[Item], arm: str) -> dict[str, Any]:
    """Paired differences to classic RAG, and how many answers are those of the same prompt read as text."""
    found: dict[str, Any] = {}
    pairs = _pairs(items, arm, BASE)
    judged = [(ours, theirs) for ours, theirs in pairs if ours.question.answers]
    if judged and arm != BASE:
        measures: dict[str, Callable[[Item], float]] = {"exact_match": lambda i: i.exact_match, "f1": lambda i: i.f1}
        for name, measure in measures.items():
            found[f"{name}_minus_rag"] = asdict(
                paired_bootstrap([measure(a) for a, _ in judged], [measure(b) for _, b in judged])
            )
        found["mcnemar_rag"] = asdict(mcnemar([a.exact_match for a, _ in judged], [b.exact_match for _, b in judged]))
    same = _pairs(items, arm, CONTROL)
    if same and arm not in ("bare", "random", *_READ_ARMS):
        found["same_answer_as_read"] = sum(a.answer.token_ids == b.answer.token_ids for a, b in same)
    return found


def _pairs(items: Sequence[Item], ours: str, theirs: str) -> list[tuple[Item, Item]]:
    others = {item.question.id: item for item in items if item.arm == theirs}
    return [(item, others[item.question.id]) for item in items if item.arm == ours and item.question.id in others]


def _bytes(arm: str, stored: Mapping[str, int]) -> int:
    if arm == "bare":
        return 0
    if arm == "rag":
        return stored["text"] + stored["rag_vectors"]
    states = 0 if arm in _READ_ARMS else stored["nnm_states"]
    return stored["text"] + stored["nnm_vectors"] + states
