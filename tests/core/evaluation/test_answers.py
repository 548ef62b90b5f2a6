"""Scores of short answers, against values worked out by hand."""

from __future__ import annotations

import pytest

from nnm_core.evaluation.answers import contains_answer, exact_match, f1, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Rhine.", "rhine"),
        (" a  B,c ", "bc"),
        ("1,230 km (760 mi)", "1230 km 760 mi"),
        ("Theatre", "theatre"),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_exact_match_against_any_gold() -> None:
    assert exact_match("the Robert Boyle", ["Boyle", "Robert Boyle"]) == 1.0
    assert exact_match("Robert", ["Boyle", "Robert Boyle"]) == 0.0
    assert exact_match("x", []) == 0.0


@pytest.mark.parametrize(
    ("answer", "golds", "score"),
    [
        ("Robert Boyle", ["Boyle"], 2 / 3),  # precision 1/2, recall 1
        ("Boyle", ["Robert Boyle", "Boyle"], 1.0),
        ("Newton", ["Boyle"], 0.0),
        ("a a b", ["b"], 1.0),  # articles do not count
        ("to to", ["to"], 2 / 3),  # a word counts as often as the gold answer has it
        ("", [""], 1.0),
        ("x", [], 0.0),
    ],
)
def test_f1(answer: str, golds: list[str], score: float) -> None:
    assert f1(answer, golds) == pytest.approx(score)


def test_contained_means_whole_words_in_order() -> None:
    assert contains_answer("It was in 1968, I think.", ["1968"])
    assert contains_answer("by the Robert Boyle himself", ["Robert Boyle"])
    assert not contains_answer("Boyle Robert", ["Robert Boyle"])
    assert not contains_answer("19680", ["1968"])
    assert not contains_answer("anything", ["", "the"])
