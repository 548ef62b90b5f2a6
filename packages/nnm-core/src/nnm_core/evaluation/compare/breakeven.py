"""After how many questions the reading at ingest has paid for itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Seconds of an arm against those of classic RAG.

    Attributes:
        arm: its name.
        extra: seconds of ingest beyond those of classic RAG.
        saved: seconds saved by each question (median to the last token); negative if it is slower.
        questions: from which number of questions on the arm has cost less in total; None if never.
    """

    arm: str
    extra: float
    saved: float
    questions: int | None


def break_even(arms: Mapping[str, Mapping[str, Any]], arm: str) -> BreakEven:
    """questions = ceil(extra / saved), for an arm that saves; 0 if its ingest costs no more."""
    mine, rag = arms[arm], arms["rag"]
    extra = mine["ingest_seconds"] - rag["ingest_seconds"]
    saved = rag["seconds_total"] - mine["seconds_total"]
    if extra <= 0 <= saved:
        return BreakEven(arm, extra, saved, 0)
    return BreakEven(arm, extra, saved, math.ceil(extra / saved) if saved > 0 else None)
