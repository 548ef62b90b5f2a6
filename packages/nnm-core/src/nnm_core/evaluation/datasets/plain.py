"""Questions of one's own: one JSON object a line, with the passages in it."""

from __future__ import annotations

from pathlib import Path

from nnm_core.evaluation.datasets.files import Row, read_jsonl
from nnm_core.evaluation.datasets.questions import Collector, Question, QuestionSet
from nnm_core.records import text_digest

HINT = (
    'A line is {"question": "...", "answers": ["..."], "passages": ["..."]}, or with "context": "..." for one passage.'
)


def load_plain(path: str | Path) -> QuestionSet:
    """Read lines of ``question``, ``answers`` (or ``answer``), ``passages`` (or ``context``), ``id``, ``category``.

    Without an ``id`` the number of the line is one. Passages are optional and named by their digest, so that lines
    about the same passage share it. A line may also hold one ``context`` and several ``qas``, each with its own
    ``question`` and ``answer``.

    Raises:
        InvalidInputError: a line cannot be read, a part is missing, or an id comes twice.
    """
    source = Path(path)
    collector = Collector(source.name, hint=HINT)
    for number, row in enumerate(read_jsonl(source, HINT), start=1):
        passages = tuple(_passages(collector, row))
        parts = row.rows("qas") if "qas" in row.value else [row]
        for place, part in enumerate(parts, start=1):
            default = str(number) if part is row else f"{number}.{place}"
            collector.question(
                Question(
                    str(part.value.get("id", default)),
                    part.text("question"),
                    tuple(_answers(part)),
                    passages,
                    str(part.value.get("category") or ""),
                ),
                part.where,
            )
    return collector.done()


def _passages(collector: Collector, row: Row) -> list[str]:
    texts = row.texts("passages") if "passages" in row.value else []
    if "context" in row.value:
        texts = [row.text("context"), *texts]
    return [collector.passage(text_digest(text)[:16], text.strip(), row.where) for text in texts]


def _answers(row: Row) -> list[str]:
    if "answers" in row.value:
        return row.texts("answers")
    return [row.text("answer")] if isinstance(row.value.get("answer"), str) else row.texts("answer")
