"""Spans and abstaining are measured on what they claim to be measured on, and counted right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.core.families import byte_tokenizer, loaded, make
from typer.testing import CliRunner

from nnm_core import NNM
from nnm_core.cli.app import app
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.citations import Found, abstain_figures, ask, auc, auc_interval, draw, span_figures
from nnm_core.evaluation.datasets import Question, QuestionSet, load_questions
from nnm_core.records import Hit, Memory

THINGS = ("owl", "fox", "cat", "bat", "dog", "hen")


def squad(folder: Path) -> Path:
    """Six passages; each with a question that it answers and one that it does not."""
    paragraphs = []
    for thing in THINGS:
        text = f"The {thing} sleeps in the barn all day. At night it eats corn. Nobody has ever seen the {thing} swim."
        answer = {"text": "barn", "answer_start": text.index("barn")}
        asked = {"id": thing, "question": f"Where does the {thing} sleep?", "answers": [answer]}
        hard = {"id": f"no-{thing}", "question": f"Who has seen the {thing} fly?", "answers": [], "is_impossible": True}
        paragraphs.append({"context": text, "qas": [asked, hard]})
    path = folder / "dev-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Barn", "paragraphs": paragraphs}]}))
    return path


def test_questions_without_an_answer_are_kept_beside_the_others(tmp_path: Path) -> None:
    data = load_questions(squad(tmp_path))
    assert len(data.questions) == len(data.unanswerable) == 6
    assert all(not question.answers and len(question.passages) == 1 for question in data.unanswerable)
    assert data.left_out == {"marked as impossible to answer": 6}
    assert data.sample(2).unanswerable == data.unanswerable


def test_the_three_kinds_are_about_passages_inside_and_outside(tmp_path: Path) -> None:
    data = load_questions(squad(tmp_path))
    drawn = draw(data, 4, 9)
    inside = set(drawn.passages)
    assert {kind: len(questions) for kind, questions in drawn.questions.items()} == {
        "answerable": 4,
        "unanswerable": 4,
        "absent": 2,
    }
    assert all(set(q.passages) <= inside for kind in ("answerable", "unanswerable") for q in drawn.questions[kind])
    assert not any(inside.intersection(q.passages) for q in drawn.questions["absent"])
    assert draw(data, 4, 9) == drawn
    assert len(draw(data, 4, 1).questions["answerable"]) == 1
    for wrong in (0, 6):
        with pytest.raises(InvalidInputError):
            draw(data, wrong, 9)


def test_searching_gives_hits_with_what_the_states_say(tmp_path: Path) -> None:
    drawn = draw(load_questions(squad(tmp_path)), 4, 9)
    with NNM.open(loaded("qwen3")) as engine:
        found = ask(engine, drawn, depth=3)
    assert [len(of_kind) for of_kind in found.values()] == [4, 4, 2]
    assert all("likelihood" in f.hit.parts for of_kind in found.values() for f in of_kind)
    assert not any(f.right for f in found["absent"])


def found(start: int, stop: int, *, right: bool = True, **parts: float) -> Found:
    question = Question("q", "What?", ("gold",), ("p",))
    return Found(question, Hit(Memory(id="p", text="aaaa gold bbbb cccc"), 1.0, parts, (start, stop)), right)


def test_spans_are_compared_with_windows_of_their_length() -> None:
    made = span_figures([found(5, 9), found(10, 14), found(5, 9, right=False)])
    assert made is not None
    assert (made.named.mean, made.named.count) == (0.5, 2)
    assert made.random.mean == pytest.approx(1 / 16)  # one of the 16 windows of four characters
    assert made.beginning.mean == 0.0
    assert made.right.mean == pytest.approx(2 / 3)
    assert made.share == pytest.approx(4 / 19)
    assert span_figures([]) is None


def test_areas_are_those_of_scikit_learn_s_definition() -> None:
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([0.0]), np.array([1.0])) == 0.0
    assert auc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(1, 1, 300), generator.normal(0, 1, 200)
    area, low, high = auc_interval(positive, negative)
    assert low < area < high
    assert area == pytest.approx(0.76, abs=0.05)  # Phi(1 / sqrt 2)
    with pytest.raises(InvalidInputError):
        auc(positive, negative[:0])


def test_only_signals_that_every_hit_has_are_judged() -> None:
    made = abstain_figures(
        {
            "answerable": [found(0, 1, likelihood=1.0, attention=2.0), found(0, 1, likelihood=2.0, attention=2.0)],
            "unanswerable": [found(0, 1, likelihood=0.0, sparse=1.0)],
            "absent": [],
        }
    )
    assert list(made) == ["unanswerable"]
    assert list(made["unanswerable"]) == ["likelihood", "sparse"]
    assert made["unanswerable"]["likelihood"][0] == 1.0
    assert made["unanswerable"]["sparse"][0] == 0.0  # no shared word counts as 0


def test_the_command_prints_figures_and_writes_them(tmp_path: Path) -> None:
    make("qwen3").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    out = tmp_path / "citations.json"
    options = ["--model", str(tmp_path / "model"), "--passages", "4", "--questions", "3", "--json", str(out)]
    done = CliRunner().invoke(app, ["eval", "citations", str(squad(tmp_path)), *options])
    assert done.exit_code == 0, done.output
    assert "answerable" in done.output
    result = json.loads(out.read_text())
    assert "AUC answerable / unanswerable, likelihood" in result["arms"]
    assert result["config"]["questions"] == {"answerable": 3, "unanswerable": 3, "absent": 2}


def test_a_set_without_unanswerable_questions_is_measured_on_the_others() -> None:
    data = QuestionSet(
        "set", {"p": "x", "r": "y"}, (Question("1", "a?", ("x",), ("p",)), Question("2", "b?", ("y",), ("r",)))
    )
    drawn = draw(data, 1, 5)
    assert [len(of_kind) for of_kind in drawn.questions.values()] == [1, 0, 1]
