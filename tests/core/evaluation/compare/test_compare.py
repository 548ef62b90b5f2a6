"""The comparison itself on a tiny model: what the arms do, and the page that comes out."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.compare.arms import LABELS, ArmSettings
from nnm_core.evaluation.compare.page import render
from nnm_core.evaluation.compare.plots import VARIABLES, plots
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.compare.run import CompareSettings, Comparison, compare
from nnm_core.evaluation.rag import BM25Retriever

TEXTS = [
    "The bins are collected on Tuesday.",
    "Maria leads the Falcon project.",
    "The key hangs behind the door.",
    "The library opens at nine.",
]
QUESTIONS = [
    Question("1", "When are the bins collected?", ("Tuesday",), "m0"),
    Question("2", "Who leads the <b>Falcon</b> project?", ("Maria",), "m1"),
    Question("3", "Where does the key hang?", ("behind the door",), "m2"),
]
SETTINGS = CompareSettings(ArmSettings(k=2, max_tokens=4), lengths=(1, 2), probes=2)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    with NNM.open(tiny_reader(), None) as engine:
        memories = engine.add(TEXTS, ids=[f"m{n}" for n in range(len(TEXTS))])
        return compare(engine, memories, QUESTIONS, retriever=BM25Retriever(), settings=SETTINGS, ingest_seconds=1.0)


def test_every_question_is_asked_once_in_every_arm(comparison: Comparison) -> None:
    assert list(comparison.arms) == list(LABELS)
    asked = [(item.arm, item.question.id) for item in comparison.items]
    assert len(asked) == len(set(asked)) == len(LABELS) * len(QUESTIONS)


def test_the_arms_do_what_they_are_named_after(comparison: Comparison) -> None:
    arms = comparison.arms
    for name in ("bare", "rag", "rag_recall", "read"):
        assert arms[name]["tokens_injected"] == 0
        assert arms[name]["tiers"] == ["text"]
    assert arms["nnm"]["tiers"] == arms["nnm_again"]["tiers"] == ["exact"]
    assert arms["composed"]["tiers"] == ["composed"], "states that the exact arm left behind would make it exact"
    assert 0 < arms["nnm"]["tokens_injected"] < arms["nnm_again"]["tokens_injected"]
    prompts = {
        name: arms[name]["tokens_read"] + arms[name]["tokens_injected"]
        for name in ("read", "nnm", "nnm_again", "composed")
    }
    assert len({round(value, 6) for value in prompts.values()}) == 1, "the same prompt, token for token"
    for name in ("nnm", "nnm_again"):
        assert arms[name]["same_answer_as_read"] == len(QUESTIONS)
    for item in comparison.items:
        if item.arm == "random":
            assert not item.found
        if item.arm == "bare":
            assert not item.given


def test_latency_has_a_row_a_length(comparison: Comparison) -> None:
    for rows in comparison.latency.values():
        assert [row["passages"] for row in rows] == [1, 2]
        assert rows[0]["tokens"] < rows[1]["tokens"]


def test_a_question_that_does_not_fit_is_left_out_of_every_arm_and_named() -> None:
    long = Question("long", "Why " + "very " * 120 + "long?", ("x",))
    with NNM.open(tiny_reader(), None) as engine:
        memories = engine.add(TEXTS)
        settings = replace(SETTINGS, lengths=())
        found = compare(engine, memories, [*QUESTIONS, long], retriever=BM25Retriever(), settings=settings)
        assert set(found.left_out) == {"long"}
        assert {item.question.id for item in found.items} == {"1", "2", "3"}
        assert found.config["questions_left_out"] == 1
        with pytest.raises(InvalidInputError, match="No question fits"):
            compare(engine, memories, [long], retriever=BM25Retriever(), settings=settings)
        assert "left out of all arms" in render(found, {})


def test_the_page_escapes_everything_and_needs_nothing_else(comparison: Comparison) -> None:
    evil = replace(comparison, config={**comparison.config, "model": "m<script>", "questions_generated": True})
    drawn = plots(evil)
    page = render(evil, drawn)
    assert set(drawn) == {"quality", "tokens", "first_token", "latency", "break_even"}
    assert page.count("<svg") == 5
    assert "<b>Falcon" not in page
    assert html.escape("<b>Falcon</b>") in page
    assert "m<script>" not in page
    assert "generated from the documents by rule" in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "prefers-color-scheme: dark" in page
    HTMLParser().feed(page)


def test_plots_take_their_colours_from_the_page_and_their_ids_do_not_meet(comparison: Comparison) -> None:
    drawn = plots(comparison)
    ids: list[str] = []
    for svg in drawn.values():
        assert not any(colour in svg for colour in VARIABLES)
        assert "var(--ink)" in svg
        own = re.findall(r'\bid="([^"]+)"', svg)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_nothing_to_compare_is_an_error() -> None:
    with NNM.open(tiny_reader(), None) as engine, pytest.raises(InvalidInputError, match="nothing to compare"):
        compare(engine, [], QUESTIONS, retriever=BM25Retriever())


def test_a_calibrated_machine_that_would_rather_read_injects_here_and_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "nnm_core.injection.planner.Planner.read_instead",
        lambda self, *_, **__: "" if self.costs is None else "reading is quicker here",
    )
    with NNM.open(tiny_reader(), None) as engine:
        memories = engine.add(TEXTS)
        engine.planner = calibrated = replace(engine.planner, costs="quick reader")  # type: ignore[arg-type]
        settings = replace(SETTINGS, lengths=())
        found = compare(engine, memories, QUESTIONS[:1], retriever=BM25Retriever(), settings=settings)
        assert engine.planner is calibrated
    assert found.arms["composed"]["tiers"] == ["composed"]
