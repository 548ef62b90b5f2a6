"""Natural Questions as open questions (Lee et al. 2019), and with passages as DPR has them (Karpukhin et al. 2020)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.datasets.files import Row, parse_json, read_jsonl
from nnm_core.evaluation.datasets.questions import Collector, Question, QuestionSet, distinct
from nnm_core.records import text_digest

HINT = (
    'A line of an NQ-open file is {"question": "...", "answer": ["..."]}. With passages: a JSON list of {"question", '
    '"answers", "positive_ctxs": [{"title", "text"}]}, as DPR has it.'
)


def load_nq(path: str | Path) -> QuestionSet:
    """Read ``NQ-open.dev.jsonl`` (questions and answers only) or a file of DPR (also passages).

    NQ-open has no ids: the number of the line is the id. A DPR question whose positive passages hold none of its
    answers is left out and counted; its ``negative_ctxs`` and ``hard_negative_ctxs`` become passages too.

    Raises:
        InvalidInputError: a line cannot be read or a part is missing.
    """
    source = Path(path)
    collector = Collector(source.name, hint=HINT)
    for number, row in enumerate(_rows(source), start=1):
        answers = distinct(row.texts("answer" if "answer" in row.value else "answers"))
        golds: tuple[str, ...] = ()
        if "positive_ctxs" in row.value:
            golds = tuple(_passages(collector, row, answers))
            if not golds:
                collector.leave_out("without a passage that holds an answer")
                continue
        collector.question(Question(str(row.value.get("id", number)), row.text("question"), answers, golds), row.where)
    return collector.done()


def _rows(source: Path) -> Iterable[Row]:
    if ".jsonl" in source.suffixes:
        return read_jsonl(source, HINT)
    value = parse_json(source, HINT)
    if not isinstance(value, list):
        raise InvalidInputError(f"{source}: not a list.", hint=HINT)
    return [Row(_object(item, source, number), f"{source}, item {number}", HINT) for number, item in enumerate(value)]


def _object(item: Any, source: Path, number: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidInputError(f"{source}, item {number}: {json.dumps(item)[:40]}, not an object.", hint=HINT)
    return item


def _passages(collector: Collector, row: Row, answers: tuple[str, ...]) -> Iterator[str]:
    for kind in ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs"):
        for context in row.rows(kind) if kind in row.value else []:
            title, text = str(context.value.get("title") or "").strip(), context.text("text").strip()
            passage = f"{title}\n{text}" if title else text
            key = collector.passage(text_digest(passage)[:16], passage, context.where)
            if kind == "positive_ctxs" and contains_answer(passage, answers):
                yield key
