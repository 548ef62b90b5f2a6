"""Sets by name from the Hugging Face hub, where there is a network (extra ``hub``)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.datasets.beir import RetrievalSet, document_text
from nnm_core.evaluation.datasets.passages import cut
from nnm_core.evaluation.datasets.questions import Collector, Question, QuestionSet, distinct
from nnm_core.records import text_digest

Rows = Iterable[Mapping[str, Any]]
PREFIX = "hub:"
OFFLINE = "Without a network give the path of the downloaded file in place of the name."


def download_questions(name: str, split: str = "validation") -> QuestionSet:
    """A question-answering set from the hub.

    Args:
        name: ``squad``, ``squad_v2``, ``trivia_qa`` (reading comprehension on Wikipedia) or ``nq_open``.
        split: of the set.

    Raises:
        InvalidInputError: unknown name, `datasets` is not installed, or the hub cannot be reached.
    """
    if name not in _SETS:
        raise InvalidInputError(f"{name!r} is no set that can be fetched.", hint=f"Known: {', '.join(_SETS)}.")
    repository, config, convert = _SETS[name]
    return convert(_rows(repository, config, split), f"{PREFIX}{name}/{split}")


def download_beir(name: str, split: str = "test") -> RetrievalSet:
    """A retrieval set of BEIR from the hub, e.g. ``scifact``: ``BeIR/<name>`` and ``BeIR/<name>-qrels``.

    Raises:
        InvalidInputError: `datasets` is not installed, or the set cannot be fetched.
    """
    documents = {str(row["_id"]): document_text(row) for row in _rows(f"BeIR/{name}", "corpus", "corpus")}
    texts = {str(row["_id"]): str(row["text"]) for row in _rows(f"BeIR/{name}", "queries", "queries")}
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows(f"BeIR/{name}-qrels", None, split):
        if int(row["score"]) > 0:
            qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    return RetrievalSet(f"{PREFIX}{name}/{split}", documents, {key: texts[key] for key in qrels}, qrels)


def _rows(repository: str, config: str | None, split: str) -> Rows:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise InvalidInputError(
            "Fetching sets needs `datasets`.", hint=f'pip install "nnm-core[hub]". {OFFLINE}'
        ) from error
    try:
        rows: Rows = library.load_dataset(repository, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` raises offline, for unknown names and splits
        raise InvalidInputError(f"{repository} ({split}) cannot be fetched: {error}.", hint=OFFLINE) from error
    return rows


def _squad(rows: Rows, name: str) -> QuestionSet:
    collector = Collector(name, hint=OFFLINE)
    for number, row in enumerate(rows):
        where = f"{name}, row {number}"
        context = str(row["context"])
        passage = collector.passage(f"{row['title']}#{text_digest(context)[:12]}", context, where)
        collector.question(
            Question(str(row["id"]), str(row["question"]), tuple(map(str, row["answers"]["text"])), (passage,)), where
        )
    return collector.done()


def _trivia_qa(rows: Rows, name: str) -> QuestionSet:
    collector = Collector(name, hint=OFFLINE)
    for number, row in enumerate(rows):
        where = f"{name}, row {number}"
        answer = row["answer"]
        answers = distinct([str(answer["value"]), *map(str, answer["aliases"])])
        golds = []
        pages = row["entity_pages"]
        for title, text in zip(pages["title"], pages["wiki_context"], strict=True):
            for place, passage in enumerate(cut(str(text))):
                key = collector.passage(f"{title}#{text_digest(str(text))[:8]}#{place}", passage, where)
                if contains_answer(passage, answers):
                    golds.append(key)
        if golds:
            collector.question(Question(str(row["question_id"]), str(row["question"]), answers, tuple(golds)), where)
        else:
            collector.leave_out("without a passage that holds an answer")
    return collector.done()


def _nq_open(rows: Rows, name: str) -> QuestionSet:
    collector = Collector(name, hint=OFFLINE)
    for number, row in enumerate(rows, start=1):
        question = Question(str(number), str(row["question"]), tuple(map(str, row["answer"])))
        collector.question(question, f"{name}, row {number}")
    return collector.done()


_SETS: Mapping[str, tuple[str, str | None, Callable[[Rows, str], QuestionSet]]] = {
    "squad": ("rajpurkar/squad", None, _squad),
    "squad_v2": ("rajpurkar/squad_v2", None, _squad),
    "trivia_qa": ("mandarjoshi/trivia_qa", "rc.wikipedia", _trivia_qa),
    "nq_open": ("google-research-datasets/nq_open", None, _nq_open),
}
