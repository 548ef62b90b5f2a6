"""SQuAD v1.1 and v2.0 in the official layout (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from pathlib import Path

from nnm_core.evaluation.datasets.files import Row, read_json
from nnm_core.evaluation.datasets.questions import Collector, Question, QuestionSet

HINT = (
    'A SQuAD file is {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", '
    '"answers": [{"text", "answer_start"}]}]}]}]}.'
)


def load_squad(path: str | Path) -> QuestionSet:
    """Read ``dev-v1.1.json`` and its like; may be compressed. Passages are named ``title#number``.

    Questions that v2.0 marks as impossible have no answer to be compared with: they are left out, counted, and kept
    under `QuestionSet.unanswerable`.

    Raises:
        InvalidInputError: a part is missing, an id comes twice, or an answer does not stand in its paragraph.
    """
    source = Path(path)
    collector = Collector(source.name, hint=HINT)
    for article in read_json(source, HINT).rows("data"):
        title = str(article.value.get("title") or "untitled")
        for number, paragraph in enumerate(article.rows("paragraphs")):
            passage = collector.passage(f"{title}#{number}", paragraph.text("context"), paragraph.where)
            for qa in paragraph.rows("qas"):
                _add(collector, qa, passage, paragraph.text("context"))
    return collector.done()


def _add(collector: Collector, qa: Row, passage: str, context: str) -> None:
    if qa.value.get("is_impossible"):
        collector.unanswerable(Question(qa.text("id"), qa.text("question"), (), (passage,)))
        return
    answers = []
    for answer in qa.rows("answers"):
        text, start = answer.text("text"), answer.get("answer_start", int)
        if context[start : start + len(text)] != text:
            answer.fail(f"{text!r} does not stand at {start} in its paragraph")
        answers.append(text)
    collector.question(Question(qa.text("id"), qa.text("question"), tuple(answers), (passage,)), qa.where)
