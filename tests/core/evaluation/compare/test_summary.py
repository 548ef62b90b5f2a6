"""Figures are those of the arm, differences are paired by question, findings say no more than the tests allow."""

from __future__ import annotations

from typing import Any

import pytest

from nnm_core.evaluation.compare.breakeven import break_even
from nnm_core.evaluation.compare.findings import findings
from nnm_core.evaluation.compare.items import Item
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.compare.run import Comparison
from nnm_core.evaluation.compare.summary import summarise
from nnm_core.records import Answer, Hit, Memory, Receipt

STORED = {"text": 100, "rag_vectors": 20, "nnm_vectors": 30, "nnm_states": 5000}
INGEST = {"rag": 1.0, "nnm": 11.0}


def item(arm: str, number: int, text: str, *, gold: str = "Boyle", **cost: Any) -> Item:
    read, injected, first = cost.get("read", 10), cost.get("injected", 0), cost.get("first", 1.0)
    receipt = Receipt("exact" if injected else "text", injected, read, 0, 2, first, "f", seconds_total=2 * first)
    hits = (Hit(Memory("p", cost.get("given", "Robert Boyle was born in Lismore.")), 1.0),)
    asked = Question(f"q{number}", f"Who {number}?", (gold,) if gold else (), "p")
    return Item(arm, asked, Answer(text, (len(text),), hits, receipt))


def figures(items: list[Item], arm: str) -> dict[str, Any]:
    return summarise(items, arm, stored=STORED, ingest=INGEST)


def test_the_summary_is_that_of_the_arm_alone() -> None:
    items = [
        item("nnm", 1, "Robert Boyle", read=10, injected=90, first=1.0),
        item("nnm", 2, "Newton", read=20, injected=80, first=5.0),
        item("nnm", 3, "Boyle", read=30, injected=70, first=2.0),
        item("rag", 1, "Newton", read=999, first=9.0),
    ]
    found = figures(items, "nnm")
    assert (found["questions"], found["judged"], found["right"], found["passage_found"]) == (3, 3, 2, 3)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert (found["tokens_read"], found["tokens_injected"]) == (20, 80)
    assert found["seconds_to_first_token"] == 2.0
    assert found["supported"] == pytest.approx(2 / 3)
    assert found["gold_given"] == 1.0
    assert found["tiers"] == ["exact"]
    assert (found["bytes_stored"], figures(items, "rag")["bytes_stored"]) == (5130, 120)


def test_differences_are_paired_by_question_whatever_the_order() -> None:
    ours = [item("nnm", n, "Boyle" if n < 6 else "no") for n in range(8)]
    theirs = [item("rag", n, "Boyle" if n in (0, 7) else "no") for n in reversed(range(8))]
    found = figures([*ours, *theirs], "nnm")
    assert found["exact_match_minus_rag"]["mean"] == pytest.approx(4 / 8)
    assert (found["mcnemar_rag"]["ours"], found["mcnemar_rag"]["theirs"]) == (5, 1)
    assert "mcnemar_rag" not in figures([*ours, *theirs], "rag")


def test_questions_without_gold_answers_count_for_costs_only() -> None:
    items = [item("nnm", 1, "Boyle"), item("nnm", 2, "Cork", gold="", read=30)]
    found = figures(items, "nnm")
    assert (found["questions"], found["judged"], found["exact_match"]) == (2, 1, 1.0)
    assert found["tokens_read"] == 20
    assert figures(items[1:], "nnm")["exact_match"] is None


def test_the_same_answer_as_reading_is_counted_by_tokens() -> None:
    items = [item("read", 1, "Boyle"), item("read", 2, "Cork"), item("nnm", 1, "Boyle"), item("nnm", 2, "Lismore")]
    assert figures(items, "nnm")["same_answer_as_read"] == 1


def test_break_even_is_where_the_sums_are_equal() -> None:
    arms = {
        "rag": {"ingest_seconds": 1.0, "seconds_total": 2.0},
        "quick": {"ingest_seconds": 11.0, "seconds_total": 1.5},
        "slow": {"ingest_seconds": 11.0, "seconds_total": 2.5},
        "free": {"ingest_seconds": 0.5, "seconds_total": 1.0},
    }
    found = break_even(arms, "quick")
    assert found.questions == 20
    assert 11.0 + 20 * 1.5 == 1.0 + 20 * 2.0
    assert break_even(arms, "slow").questions is None
    assert break_even(arms, "free").questions == 0


def said(right_ours: set[int], right_theirs: set[int]) -> str:
    items = [item("nnm", n, "Boyle" if n in right_ours else "no") for n in range(20)]
    items += [item("rag", n, "Boyle" if n in right_theirs else "no") for n in range(20)]
    arms = {name: figures(items, name) for name in ("rag", "nnm")}
    return findings(Comparison(arms, {}, items, {}))[0]


def test_a_difference_is_claimed_only_where_the_test_shows_it_and_in_its_direction() -> None:
    assert "no difference is shown" in said({0, 1, 2, 3, 4}, {0})
    assert "it is ahead" in said(set(range(8)), set())
    assert "it is behind" in said(set(), set(range(8)))
