"""The demo: its data hold together, its table shows what the items say."""

from __future__ import annotations

import io
from importlib.resources import files

from rich.console import Console

from nnm_core.demo import dataset
from nnm_core.demo.table import result_table
from nnm_core.evaluation.compare.items import Item
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.compare.summary import summarise
from nnm_core.records import Answer, Receipt

STORED = {"text": 1, "rag_vectors": 1, "nnm_vectors": 1, "nnm_states": 1}
INGEST = {"rag": 1.0, "nnm": 2.0}
ARMS = ("bare", "rag", "nnm", "random")


def item(arm: str, text: str) -> Item:
    receipt = Receipt("text", 0, 10, 0, 2, 1.0, "f", seconds_total=2.0)
    return Item(arm, Question("q", "Who?", ("Boyle",), "p"), Answer(text, (1,), (), receipt))


def test_every_gold_answer_stands_in_its_passage() -> None:
    texts = {passage.id: passage.text for passage in dataset.passages()}
    assert 40 <= len(texts) <= 60
    questions = dataset.questions()
    assert len(questions) >= 12
    for question in questions:
        assert question.answers
        assert all(answer in texts[question.passage] for answer in question.answers), question


def test_ids_are_unique_and_the_licence_is_with_the_data() -> None:
    for rows in (dataset.passages(), dataset.questions()):
        assert len({row.id for row in rows}) == len(rows)
    notice = files("nnm_core.demo").joinpath("data", "NOTICE.md").read_text()
    assert "CC BY-SA" in notice or "ShareAlike" in notice
    for title in {passage.title for passage in dataset.passages()}:
        assert title.lower() in notice.lower()


def test_the_table_has_a_row_a_question_and_the_figures() -> None:
    items = [item(arm, "Boyle" if arm == "nnm" else "no") for arm in ARMS]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(result_table(items, {arm: summarise(items, arm, stored=STORED, ingest=INGEST) for arm in ARMS}))
    shown = console.export_text()
    assert shown.count("\u2713") == 1
    assert shown.count("\u2717") == 3
    assert "1 of 1" in shown
