"""The demo: its data hold together, its figures are what the items say, its page and plot come out."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from rich.console import Console

from nnm_core.demo import dataset
from nnm_core.demo.dataset import Question
from nnm_core.demo.page import render
from nnm_core.demo.run import ARMS, Item, summary
from nnm_core.demo.table import result_table
from nnm_core.evaluation.answers import contains_answer
from nnm_core.records import Answer, Receipt


def item(arm: str, text: str, *, read: int = 10, injected: int = 0, first: float = 1.0, question: str = "Who?") -> Item:
    receipt = Receipt("exact" if injected else "text", injected, read, 0, 2, first, "f", seconds_total=2 * first)
    answer = Answer(text, (1,), (), receipt)
    asked = Question("q", question, ("Boyle",), "p")
    return Item(arm, asked, answer, right=contains_answer(text, asked.answers), found=True)


CONFIG = {
    "questions": 1,
    "passages": 2,
    "model": "m<script>",
    "device": "cpu",
    "k": 1,
    "policy": "auto",
    "retriever": "BM25",
    "version": "0",
    "date": "2026-01-01",
}


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


def test_the_summary_is_that_of_the_arm_alone() -> None:
    items = [
        item("nnm", "Robert Boyle", read=10, injected=90, first=1.0),
        item("nnm", "Newton", read=20, injected=80, first=5.0),
        item("nnm", "Boyle", read=30, injected=70, first=2.0),
        item("rag", "Newton", read=999, first=9.0),
    ]
    found = summary(items, "nnm")
    assert (found["questions"], found["right"]) == (3, 2)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert (found["tokens_read"], found["tokens_injected"]) == (20, 80)
    assert found["seconds_to_first_token"] == 2.0
    assert found["tiers"] == ["exact"]


def test_the_page_escapes_everything_and_needs_nothing_else() -> None:
    items = [item(arm, "<b>Boyle</b>", question="<i>Who?</i>") for arm in ARMS]
    page = render(items, {arm: summary(items, arm) for arm in ARMS}, CONFIG, plot=None)
    assert "<b>Boyle" not in page
    assert "<i>Who" not in page
    assert "m<script>" not in page
    assert html.escape("<b>Boyle</b>") in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    HTMLParser().feed(page)


def test_the_table_has_a_row_a_question_and_the_figures() -> None:
    items = [item(arm, "Boyle" if arm == "nnm" else "no") for arm in ARMS]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(result_table(items, {arm: summary(items, arm) for arm in ARMS}))
    shown = console.export_text()
    assert shown.count("\u2713") == 1
    assert shown.count("\u2717") == 3
    assert "1 of 1" in shown
