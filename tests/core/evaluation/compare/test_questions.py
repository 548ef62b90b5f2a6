"""Questions come from files as they are, or from the documents by rule with answers that stand in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnm_core.demo.dataset import passages
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.compare.questions import BLANK, generate_questions, read_questions


def test_jsonl_and_csv_say_the_same(tmp_path: Path) -> None:
    lines = tmp_path / "q.jsonl"
    lines.write_text(
        '{"id": "a", "question": "Who, when?", "answers": ["Boyle", "R. Boyle"], "passage": "p"}\n\n'
        '{"question": "Where?", "answer": "Cork"}\n{"question": "Why?"}\n'
    )
    table = tmp_path / "q.csv"
    table.write_text('id,question,answers,passage\na,"Who, when?",Boyle| R. Boyle,p\n,Where?,Cork,\n,Why?,,\n')
    for path in (lines, table):
        first, second, third = read_questions(path)
        assert (first.id, first.question, first.answers, first.passage) == (
            "a",
            "Who, when?",
            ("Boyle", "R. Boyle"),
            "p",
        )
        assert (second.question, second.answers) == ("Where?", ("Cork",))
        assert third.answers == ()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"question": "Who?"}\n{"query": "Where?"}\n', "line 2"),
        ("q.jsonl", "not json\n", "line 1"),
        ("q.jsonl", '{"question": "Who?", "answers": [1]}\n', "answers"),
        ("q.jsonl", '{"question": "Who?"}\n{"question": "Who?"}\n', "twice"),
        ("q.jsonl", "\n", "no questions"),
        ("q.csv", "question,answers\nWho, where?,Boyle\n", "line 2"),
    ],
)
def test_a_bad_file_is_refused_as_a_whole(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_questions(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.jsonl"):
        read_questions(tmp_path / "none.jsonl")


def test_generated_questions_have_one_answer_in_one_document_and_none_in_the_question() -> None:
    documents = [(passage.id, passage.text) for passage in passages()]
    made = generate_questions(documents, 30, seed=1)
    texts = dict(documents)
    assert len(made) == 30
    assert made == generate_questions(documents, 30, seed=1)
    assert made != generate_questions(documents, 30, seed=2)
    assert len({question.passage for question in made}) == 30, "no document has two before every one has one"
    for question in made:
        (answer,) = question.answers
        assert question.generated
        assert BLANK in question.question
        assert answer in texts[question.passage]
        assert sum(text.count(answer) for text in texts.values()) == 1
        assert answer not in question.question


def test_documents_without_anything_to_ask_about_give_no_questions() -> None:
    assert generate_questions([("a", "nothing here has a name, a number or a date in it at all")], 5) == []
