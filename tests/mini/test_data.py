"""What the training data promises: no test passage in it, held-out wordings held out, unanswerable means
unanswerable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
from recipe.corpus import Document
from recipe.events import Events
from recipe.examples import Article, Builder, Passage
from recipe.fact_table import TABLE
from recipe.facts import Generator, relations
from recipe.layout import ANSWER, DONT_KNOW
from recipe.overlap import Blocklist, held_out_texts
from recipe.reading_sets import load_reading_sets
from recipe.rules import pairs_of

PASSAGE = (
    "The lighthouse on the northern cape was finished in 1871 by a group of engineers from Bergen, who had to carry "
    "every stone across the ice. It was painted red and white so that ships could see it by day."
)


def test_an_overlap_is_found_at_any_offset() -> None:
    blocked = Blocklist([PASSAGE])
    words = PASSAGE.split()
    for start in range(len(words) - 19):
        assert blocked.blocks("Something else before it: " + " ".join(words[start : start + 19]).upper() + "!")
    assert not blocked.blocks(
        "The lighthouse on the southern cape was never finished, because the ice was too thin for stones."
    )
    assert blocked.clean(f"A first line.\n{PASSAGE}\nA last line.") == "A first line.\nA last line."


@pytest.mark.slow
def test_no_reading_passage_overlaps_a_test_passage(data: Path) -> None:
    readings = load_reading_sets(data)
    assert len(readings) > 2000
    train = Blocklist(reading.passage for reading in readings)
    texts = held_out_texts(data)
    assert len(texts) > 1500
    # The other way round than the filter: windows of the training texts, looked up from the test texts.
    assert not [text for text in texts if train.blocks(text)]


def test_held_out_facts_share_no_wording_and_no_name_with_training() -> None:
    trained = {wording for relation in relations() for wording in (*relation.statements, *relation.questions)}
    held_out = {wording for r in relations() for wording in (*r.held_out_statements, *r.held_out_questions)}
    assert not trained & held_out
    assert len(relations()) == len(TABLE.strip().splitlines()) >= 40
    seen, kept = Generator(Random(1)), Generator(Random(1), held_out=True)
    assert not set(seen.given) & set(kept.given)
    assert not set(seen.family) & set(kept.family)


def test_facts_are_answered_by_their_statement_and_unanswerable_ones_by_none() -> None:
    generator = Generator(Random(3))
    for _ in range(300):
        text, facts = generator.document(5)
        assert all(fact.answer in fact.statement and fact.statement in text for fact in facts)
        question, answer = generator.unanswerable(facts)
        assert answer == DONT_KNOW
        assert question not in {fact.question for fact in facts}


def test_rule_questions_have_their_answer_in_the_sentence_and_not_in_the_question() -> None:
    sentence = (
        "In 1871, the lighthouse was finished by Anna Berg in Bergen, and 300 workers moved to the northern cape."
    )
    rng = Random(0)
    found = {pair for _ in range(40) for pair in pairs_of(sentence, "Lighthouse", rng, 3)}
    assert len(found) > 10
    for question, answer in found:
        assert answer in sentence
        assert answer.lower() not in question.lower()
    assert any(
        re.match(r"(When|In (what|which) year|What year) was the lighthouse finished", q) and a == "1871"
        for q, a in found
    )


def test_answered_turns_have_the_answer_in_the_context_and_declined_ones_are_a_fair_share() -> None:
    builder = Builder(Random(5))
    towns = ["Bergen", "Oslo", "Hamar", "Molde"]
    texts = [f"{PASSAGE} {town} Harbour was finished by Anna Berg in {1850 + i}." for i, town in enumerate(towns)]
    pairs = [
        [(f"When was {town} Harbour finished by Anna Berg?", str(1850 + i)), ("Who built it?", "engineers from Bergen")]
        for i, town in enumerate(towns)
    ]
    answered = declined = 0
    for number in range(400):
        passages = [Passage(text, list(asked)) for text, asked in zip(texts, pairs, strict=True)]
        for segments in builder.from_article(Article(f"Cape {number}", passages)):
            context = "".join(segment.text for segment in segments if segment.loss != ANSWER)
            for segment in segments:
                if segment.loss != ANSWER:
                    continue
                answer = segment.text.strip().removesuffix("<|im_end|>")
                declined += answer == DONT_KNOW
                answered += answer != DONT_KNOW
                assert answer == DONT_KNOW or answer in context
    assert 0.06 < declined / (answered + declined) < 0.2


def test_composed_events_are_answered_by_their_statement_and_changed_ones_are_not() -> None:
    events = Events(Generator(Random(4)))
    seen = {wording for relation in relations() for wording in relation.held_out_statements}
    changed = 0
    for _ in range(300):
        known = [events.fact() for _ in range(4)]
        assert all(fact.answer in fact.statement for fact in known)
        assert not seen & {fact.statement for fact in known}
        question = events.unanswerable(known)
        if question is not None:
            changed += 1
            assert question not in {fact.question for fact in known}
    assert changed > 100


def test_calibration_questions_stand_in_no_dev_or_test_passage_and_have_their_answers(training: Path) -> None:
    rows = [json.loads(line) for line in (training / "recipe" / "calibration.jsonl").read_text().splitlines()]
    assert sum(len(row["pairs"]) for row in rows) == 112
    for row in rows:
        assert Document(row["title"], "").held_out
        assert all(answer in row["passage"] for _, answer in row["pairs"])


@pytest.mark.slow
def test_no_calibration_passage_overlaps_a_test_passage(data: Path, training: Path) -> None:
    rows = [json.loads(line) for line in (training / "recipe" / "calibration.jsonl").read_text().splitlines()]
    kept = Blocklist(row["passage"] for row in rows)
    assert not [text for text in held_out_texts(data) if kept.blocks(text)]
