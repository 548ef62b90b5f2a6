"""The questions of a comparison: from a file, or made from the documents by rule where there are none."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.files import Row, read_jsonl, read_text
from nnm_core.evaluation.datasets.questions import distinct

BLANK = "____"
_HINT = 'JSONL: {"question": ..., "answers": [...]} a line; CSV: a header with question and, if you like, answers.'
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_SPANS = (
    re.compile(rf"\b(?:\d{{1,2}} {_MONTH} \d{{4}}|{_MONTH} \d{{1,2}}, \d{{4}}|{_MONTH} \d{{4}})\b"),
    re.compile(r"(?<=[a-z,] )(?:[A-Z][\w'-]+)(?: (?:of |the |de |van )*[A-Z][\w'-]+){1,3}"),
    re.compile(r"(?<![\w.,/-])\d[\d,.]*\d(?![\w/-])"),
    re.compile(r"(?<=[a-z,] )[A-Z][\w'-]{3,}"),
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its gold answers, and the id of the passage that answers it.

    Attributes:
        id: unique within a comparison.
        question: what is asked.
        answers: any of them counts as right; empty if none is known.
        passage: id of the document with the answer, or empty if it is not known.
        generated: made by rule from the documents, not by a person.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    passage: str = ""
    generated: bool = False


def read_questions(path: Path) -> list[Question]:
    """Read a JSONL or CSV file.

    JSONL has ``question``, and optionally ``answers`` (a list or a string; ``answer`` is accepted), ``id`` and
    ``passage``. CSV has the same columns; several answers are separated by ``|``.

    Raises:
        InvalidInputError: the file cannot be read, or a line has no question; nothing is left out silently.
    """
    rows = _csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else list(read_jsonl(path, _HINT))
    questions = [_question(row, number, path) for number, row in enumerate(rows, start=1)]
    if not questions:
        raise InvalidInputError(f"{path}: there are no questions in it.", hint=_HINT)
    _check_unique(questions, path)
    return questions


def _csv_rows(path: Path) -> list[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path)), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    rows: list[Row] = []
    try:
        for fields in reader:
            row = Row(fields, f"{path}, line {reader.line_num}", _HINT)
            if None in fields:
                row.fail('there are more fields than columns; put a text with commas in quotes: "Who, where?"')
            split = (fields.get("answers") or fields.get("answer") or "").split("|")
            rows.append(Row({**fields, "answers": split}, row.where, row.hint))
    except csv.Error as error:
        raise InvalidInputError(f"{path}, line {reader.line_num}: {error}.", hint=_HINT) from error
    return rows


def _question(row: Row, number: int, path: Path) -> Question:
    asked = row.text("question").strip()
    key = "answers" if "answers" in row.value else "answer"
    given = row.value.get(key)
    answers = [given] if isinstance(given, str) else row.texts(key) if given is not None else []
    identity = str(row.value.get("id") or f"{path.name}:{number}")
    return Question(identity, asked, distinct(answers), str(row.value.get("passage") or ""))


def _check_unique(questions: Iterable[Question], path: Path) -> None:
    ids, asked = set[str](), set[str]()
    for question in questions:
        if question.id in ids or question.question in asked:
            raise InvalidInputError(
                f"{path}: the question {question.id!r} is there twice.",
                hint="Each question counts once: repeated items make differences look surer than they are.",
            )
        ids.add(question.id)
        asked.add(question.question)


def generate_questions(documents: Sequence[tuple[str, str]], count: int, *, seed: int = 0) -> list[Question]:
    """Fill-in questions by rule: a sentence of a document with a date, name or number left out, which is the answer.

    They are no substitute for people's questions: they share most words with the sentence that answers them, so
    passages are found more easily than in use. The gap is chosen where its text stands only once in the collection.

    Args:
        documents: (id, text).
        count: at most so many, at most one a document before any document gets its second.
        seed: of the choice.
    """
    chance = random.Random(seed)  # noqa: S311 - a reproducible choice, no secret
    everything = "\n".join(text for _, text in documents)
    queues = []
    for identity, text in documents:
        found = [gap for sentence in _SENTENCES.split(" ".join(text.split())) for gap in _gaps(sentence, everything)]
        chance.shuffle(found)
        queues.append([(identity, gap) for gap in found])
    chance.shuffle(queues)
    questions: list[Question] = []
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(questions) < count:
                identity, (asked, answer) = queue[turn]
                number = len(questions) + 1
                questions.append(Question(f"generated-{number}", asked, (answer,), identity, generated=True))
    return questions


def _gaps(sentence: str, everything: str) -> list[tuple[str, str]]:
    """(question, answer) of a sentence, at most one: the most specific thing in it that is named nowhere else."""
    if not 8 <= len(sentence.split()) <= 60:
        return []
    for pattern in _SPANS:
        for found in pattern.finditer(sentence):
            answer = found[0]
            if everything.count(answer) == 1:
                before = sentence[: found.start()].split()[-12:]
                after = sentence[found.end() :].split(" ")[:12]
                shown = f"{' '.join(before)} {BLANK}{' '.join(after)}".strip().rstrip(".")
                return [(f'What belongs in place of {BLANK} in "{shown}"?', answer)]
    return []
