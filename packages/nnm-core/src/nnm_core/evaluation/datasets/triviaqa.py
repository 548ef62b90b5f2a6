"""TriviaQA in the official layout (Joshi et al. 2017): questions in one JSON file, evidence documents in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.datasets.files import Row, read_json, read_text
from nnm_core.evaluation.datasets.passages import cut
from nnm_core.evaluation.datasets.questions import Collector, Question, QuestionSet, distinct

HINT = (
    'A TriviaQA file is {"Data": [{"QuestionId", "Question", "Answer": {"Value", "Aliases"}, '
    '"EntityPages": [{"Filename"}], "SearchResults": [{"Filename"}]}]}; the documents lie in evidence/wikipedia and '
    "evidence/web beside the folder of the file, or in --evidence FOLDER."
)


def load_triviaqa(path: str | Path, *, evidence: str | Path | None = None, words: int = 120) -> QuestionSet:
    """Read an RC or unfiltered file and the evidence that it names.

    The documents are cut into passages of `words` words; the passages that answer a question are those of its own
    documents in which an answer *stands after cutting* (the whole document having it is not enough). Questions without
    such a passage are left out and counted. Without an evidence folder there are questions but no passages.

    Args:
        path: ``wikipedia-dev.json``, ``unfiltered-web-dev.json`` ...
        evidence: the folder that holds ``wikipedia/`` and ``web/``; found beside the file's folder if left out.
        words: length of a passage at most.

    Raises:
        InvalidInputError: a part is missing, an id comes twice, or a named document is not there.
    """
    source = Path(path)
    documents = _evidence(source, evidence)
    collector = Collector(source.name, hint=HINT)
    for row in read_json(source, HINT).rows("Data"):
        answers = _answers(row)
        golds: tuple[str, ...] = ()
        if documents is not None and answers:
            golds = tuple(_golds(collector, row, documents, answers, words))
            if not golds:
                collector.leave_out("without a passage that holds an answer")
                continue
        collector.question(Question(row.text("QuestionId"), row.text("Question"), answers, golds), row.where)
    return collector.done()


def _answers(row: Row) -> tuple[str, ...]:
    if "Answer" not in row.value:
        return ()  # the test files have none
    answer = row.row("Answer")
    return distinct([answer.text("Value"), *answer.texts("Aliases")])


def _golds(collector: Collector, row: Row, folder: Path, answers: tuple[str, ...], words: int) -> Iterator[str]:
    for name, where in _documents(row):
        path = folder / name
        if not path.is_file():
            raise InvalidInputError(f"{where}: there is no document {path}.", hint=HINT)
        for number, passage in enumerate(cut(read_text(path), words=words)):
            key = collector.passage(f"{name}#{number}", passage, where)
            if contains_answer(passage, answers):
                yield key


def _documents(row: Row) -> Iterator[tuple[str, str]]:
    for kind, folder in (("EntityPages", "wikipedia"), ("SearchResults", "web")):
        for page in row.rows(kind) if kind in row.value else []:
            yield f"{folder}/{page.text('Filename')}", page.where


def _evidence(source: Path, given: str | Path | None) -> Path | None:
    if given is not None:
        if not Path(given).is_dir():
            raise InvalidInputError(f"{given}: no such folder of evidence.", hint=HINT)
        return Path(given)
    for beside in (source.parent / "evidence", source.parent.parent / "evidence"):
        if beside.is_dir():
            return beside
    return None
