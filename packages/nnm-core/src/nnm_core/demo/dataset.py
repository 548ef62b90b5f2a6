"""The passages and questions of the demo (CC BY-SA 4.0, see ``data/NOTICE.md``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from nnm_core.evaluation.compare.questions import Question


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph of an article."""

    id: str
    title: str
    text: str


def passages() -> list[Passage]:
    """All passages, in the order of their articles."""
    return [Passage(**row) for row in _rows("passages.jsonl")]


def questions() -> list[Question]:
    """All questions, in the order of their articles."""
    return [Question(**(row | {"answers": tuple(row["answers"])})) for row in _rows("questions.jsonl")]


def _rows(name: str) -> Iterator[dict[str, Any]]:
    text = files("nnm_core.demo").joinpath("data", name).read_text(encoding="utf-8")
    return (json.loads(line) for line in text.splitlines())
