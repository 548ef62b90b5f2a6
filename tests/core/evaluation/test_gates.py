"""The gates on tiny random readers: what must be equal is, a broken engine fails, and nothing is cut or repeated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.core.evaluation.samples import FACTS, locomo, write_squad
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.errors import ContextOverflowError, InvalidInputError
from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.datasets import load_locomo, load_questions
from nnm_core.evaluation.datasets.claims import Claim, ClaimSet
from nnm_core.evaluation.gates import claims, conversation, extraction, multi, needle, qa
from nnm_core.evaluation.gates.core import Case, Item, ask_all, chosen, unique
from nnm_core.evaluation.gates.haystack import Haystack
from nnm_core.evaluation.gates.result import at_floor, compare, grouped, injected_something, same_tokens, summarise
from nnm_core.evaluation.rag import BM25Retriever
from nnm_core.records import Answer, Receipt

# Sentences of 9 to 32 characters, none twice.
HAY = Haystack([f"{'so ' * (i % 8)}it is {i}." for i in range(120)])


@pytest.fixture
def engine() -> Iterator[NNM]:
    with NNM.open(tiny_reader(), state_cache=0) as opened:
        yield opened


def item(arm: str, case: str, *, right: float, tokens: tuple[int, ...] = (1,), **labels: Any) -> Item:
    receipt = Receipt("exact", 3, 2, 0, len(tokens), 0.1, "f", seconds_total=0.2)
    return Item(arm, Case(case, "q", ("g",), labels), Answer("a", tokens, (), receipt), {"em": right})


def items(ours: str, theirs: str) -> list[Item]:
    """Two arms from strings of 0 and 1."""
    rows = (("a", ours), ("b", theirs))
    return [item(arm, str(i), right=float(mark)) for arm, row in rows for i, mark in enumerate(row)]


def test_comparisons_are_paired_by_case_with_known_values() -> None:
    (found,) = compare(items("1111100", "1000010"), [("a", "b"), ("a", "absent")], "em")
    assert (found.test.ours, found.test.theirs) == (4, 1)
    assert found.test.p == pytest.approx(2 * (1 + 5) / 2**5)  # P(X <= 1), X ~ B(5, 1/2), twice
    assert found.differences["em"].mean == pytest.approx(3 / 7)
    assert (found.identical, found.count) == (7, 7)


def test_figures_count_every_token_of_every_item() -> None:
    row = summarise(items("10", "11"))["a"]
    assert row["em"] == 0.5
    assert row["tokens"] == {"read": 4, "injected": 6, "recomputed": 0, "generated": 2}
    assert row["tokens_mean"]["injected"] == 3
    assert row["prompt_tokens"] == [5, 5]
    assert row["tiers"] == {"exact": 2}
    rows = [item("a", "1", right=1, depth=0.5), item("a", "2", right=0, depth=0.5), item("a", "3", right=0, depth=1)]
    assert grouped(rows, ["depth"], "em") == {"depth": {"0.5": {"a": 0.5, "count": 2}, "1": {"a": 0, "count": 1}}}


def test_one_token_that_differs_fails_the_exact_check() -> None:
    same = [item("nnm", "1", right=1, tokens=(5, 6)), item("read", "1", right=1, tokens=(5, 6))]
    check = same_tokens(same, "nnm", "read")
    assert check is not None
    assert check.passed
    check = same_tokens([same[0], item("read", "1", right=1, tokens=(5, 7))], "nnm", "read")
    assert check is not None
    assert check.passed is False
    assert "0 of 1" in check.detail
    assert same_tokens(same, "nnm", "absent") is None


def test_the_floor_is_passed_failed_or_left_open() -> None:
    def verdict(control: str, floor: str) -> bool | None:
        check = at_floor(items(control, floor), "a", "b", "em")
        assert check is not None
        return check.passed

    assert verdict("0" * 200, "0" * 200) is True
    assert verdict("1" * 100 + "0" * 100, "0" * 200) is False
    assert verdict("1" + "0" * 9, "0" * 10) is None


def test_an_arm_that_injects_nothing_is_found_out() -> None:
    check = injected_something([item("nnm", "1", right=1)], "nnm")
    assert check is not None
    assert check.passed is False


def test_cases_are_unique_and_arms_known() -> None:
    case = Case("1", "q", ("a",))
    with pytest.raises(InvalidInputError, match="occurs twice"):
        unique([case, case])
    with pytest.raises(InvalidInputError, match="nothing to ask"):
        unique([])
    with pytest.raises(InvalidInputError, match="no arm 'z'"):
        chosen({}, ["z"])


def qa_result(engine: NNM, tmp_path: Path, **settings: Any) -> Any:
    data = load_questions(write_squad(tmp_path / "dev.json"))
    return qa.run(engine, data, BM25Retriever(), qa.QASettings(max_tokens=4, **settings))


def test_qa_injects_exactly_what_is_read(engine: NNM, tmp_path: Path) -> None:
    result = qa_result(engine, tmp_path, k=2)
    assert list(result.arms) == [
        "cold",
        "oracle rag",
        "oracle rag same order",
        "oracle nnm",
        "retrieved rag",
        "retrieved rag same order",
        "retrieved nnm",
        "retrieved composed",
        "random",
    ]
    assert result.passed
    assert {check.name for check in result.checks} >= {"oracle nnm = oracle rag same order", "oracle nnm injects"}
    same = next(c for c in result.comparisons if (c.ours, c.theirs) == ("oracle nnm", "oracle rag same order"))
    assert same.identical == same.count == 6
    by_arm = {arm: [i for i in result.items if i.arm == arm] for arm in result.arms}
    for read, nnm in zip(by_arm["oracle rag same order"], by_arm["oracle nnm"], strict=True):
        total = read.answer.receipt.tokens_read
        assert nnm.answer.receipt.tokens_read + nnm.answer.receipt.tokens_injected == total
        assert nnm.answer.receipt.tier == "exact"
        assert read.given == nnm.given == read.case.data.passages
    assert all(i.answer.receipt.tier == "composed" for i in by_arm["retrieved composed"])
    assert all(len(i.given) == 2 for i in by_arm["retrieved rag"])
    assert all(i.scores["gold_given"] == 0 for i in [*by_arm["random"], *by_arm["cold"]])
    assert all(i.scores["gold_given"] == 1 for i in by_arm["oracle rag"])
    assert result.arms["retrieved rag"]["tokens"]["injected"] == 0


def test_qa_does_not_depend_on_the_order_of_the_arms(engine: NNM, tmp_path: Path) -> None:
    """A composed arm must not find the chain that an exact arm before it has read."""
    first = qa_result(engine, tmp_path, k=2, passages="retrieved")
    alone = qa_result(engine, tmp_path, k=2, passages="retrieved", arms=("retrieved composed",))
    answers = [i.answer.token_ids for i in first.items if i.arm == "retrieved composed"]
    assert answers == [i.answer.token_ids for i in alone.items]
    assert list(alone.arms) == ["retrieved composed"]


def test_a_broken_engine_fails_the_gate(engine: NNM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnm_core import answering

    real = answering.place

    def misplaced(model: Any, state: Any, start: int) -> Any:
        placed = real(model, state, start)
        return replace(placed, layers=tuple((key.flip(1), value) for key, value in placed.layers))

    monkeypatch.setattr(answering, "place", misplaced)
    result = qa_result(engine, tmp_path, passages="oracle")
    assert not result.passed
    failed = [check.name for check in result.checks if check.passed is False]
    assert failed == ["oracle nnm = oracle rag same order"]


def test_qa_samples_unique_questions_and_says_what_is_missing(engine: NNM, tmp_path: Path) -> None:
    result = qa_result(engine, tmp_path, passages="oracle", limit=3, seed=2)
    ids = [i.case.id for i in result.items if i.arm == "cold"]
    assert len(set(ids)) == 3
    assert result.config["questions_in_data"] == 6
    data = replace(load_questions(write_squad(tmp_path / "dev.json")), passages={})
    with pytest.raises(InvalidInputError, match="no passages"):
        qa.run(engine, data, BM25Retriever(), qa.QASettings())


def test_qa_raises_where_a_prompt_would_have_to_be_cut(engine: NNM, tmp_path: Path) -> None:
    with pytest.raises(ContextOverflowError):
        qa_result(engine, tmp_path, k=6, passages="retrieved", template="x" * 400 + "{context}{question}")


def test_the_haystack_is_cut_at_sentences_to_the_wanted_length(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    text = " = Title = \n A well @-@ known <unk> thing , for 1 @,@ 000 people . It was made here once .\n\nNo.\n"
    path.write_text(text)
    assert Haystack.of(path).sentences == ["A well-known thing, for 1,000 people.", "It was made here once."]
    chance = random.Random(0)
    for length in (300, 900, 1500):
        document = HAY.document(length, chance)
        assert 0.9 * length <= len(" ".join(document)) <= length
        assert len(set(document)) == len(document)
    with pytest.raises(InvalidInputError, match="is wanted"):
        HAY.document(10_000, chance)
    path.write_text("= Only a heading =\n")
    with pytest.raises(InvalidInputError, match="no text"):
        Haystack.of(path)


def test_needles_are_unique_and_lie_where_they_should() -> None:
    settings = needle.NeedleSettings(lengths=(300, 600), cases=10, depths=5, pieces=3)
    cases = needle.make_cases(HAY, settings)
    assert cases == needle.make_cases(HAY, settings)
    assert len({case.golds for case in cases}) == 20
    for case in cases:
        document: needle.Document = case.data
        assert 0.85 * case.labels["length"] <= len(document.whole) <= case.labels["length"]  # type: ignore[operator]
        assert " ".join(document.pieces) == document.whole
        assert len(document.pieces) == 3
        at = document.whole.index(case.golds[0]) / len(document.whole)
        assert abs(at - float(case.labels["depth"])) < 0.25
    assert {case.labels["depth"] for case in cases} == {0, 0.25, 0.5, 0.75, 1}


def test_needle_reads_injects_and_composes_the_same_documents(engine: NNM) -> None:
    settings = needle.NeedleSettings(lengths=(150, 250), cases=2, depths=2, pieces=2, max_tokens=3)
    result = needle.run(engine, HAY, settings)
    assert result.passed
    assert list(result.arms) == ["cold", "read", "nnm", "read pieces", "composed"]
    assert result.arms["nnm"]["tiers"] == {"exact": 4}
    assert result.arms["composed"]["tiers"] == {"composed": 4}
    assert set(result.groups) == {"length", "depth"}
    assert set(needle.grid(result.items, "nnm")) == {(150, 0.0), (150, 1.0), (250, 0.0), (250, 1.0)}
    with pytest.raises(InvalidInputError, match=r"has \d+ tokens"):  # never cut short
        needle.run(engine, HAY, replace(settings, lengths=(600,)))


def test_the_longest_document_fits(engine: NNM) -> None:
    length = needle.longest(engine, HAY, reserve=200)
    assert 200 < length < 512
    needle.run(engine, HAY, needle.NeedleSettings(lengths=(length,), cases=1, depths=1, pieces=2, max_tokens=2))


def test_multi_prompts_hold_what_is_needed_and_nothing_else_that_answers() -> None:
    settings = multi.MultiSettings(sizes=(2, 5), cases=6)
    cases = multi.make_cases(settings)
    assert len({case.id for case in cases}) == 24
    for case in cases:
        assert len(case.data) == case.labels["memories"]
        holding = [note for note in case.data if case.golds[0] in note]
        assert len(holding) == 1
        name = case.question.removeprefix("What is the code of ").removesuffix("'s locker?")
        about = [note for note in case.data if name in note]
        assert len(about) == 1
        assert (about == holding) == (case.labels["needed"] == 1)
        if case.labels["needed"] == 2:
            locker = about[0].rstrip(".").split()[-1]
            assert f"Locker number {locker} " in holding[0]
    assert len({case.labels["place"] for case in cases}) > 1
    around = multi.make_cases(replace(settings, words=20), HAY)
    assert all(len(note) > 90 for case in around for note in case.data)
    for wrong in ({"sizes": (1,)}, {"needed": (3,)}, {"sizes": (99,)}):
        with pytest.raises(InvalidInputError):
            multi.make_cases(replace(settings, **wrong))
    with pytest.raises(InvalidInputError, match="no text"):
        multi.make_cases(replace(settings, words=20))


def test_multi_reads_the_same_tokens_as_it_injects(engine: NNM) -> None:
    result = multi.run(engine, multi.MultiSettings(sizes=(2, 3), cases=2, max_tokens=3))
    assert result.passed
    assert result.arms["composed"]["tiers"] == {"composed": 8}
    assert result.arms["composed"]["tokens"]["injected"] > result.arms["nnm"]["tokens"]["injected"] > 0
    assert set(result.groups["memories"]) == {"2", "3"}


def test_conversation_asks_each_question_within_its_own_conversation(engine: NNM, tmp_path: Path) -> None:
    other = locomo()[0] | {"sample_id": "conv-2", "qa": locomo()[0]["qa"][:1]}
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([*locomo(), other]))
    settings = conversation.ConversationSettings(k=2, max_tokens=3)
    result = conversation.run(engine, load_locomo(path), BM25Retriever(), settings)
    assert result.passed
    for one in result.items:
        assert all(name.startswith(f"{one.case.labels['conversation']}/") for name in one.given)
    assert result.config["turns"] == 8
    assert set(result.groups["category"]) == {"multi-hop", "temporal", "open-domain", "single-hop", "adversarial"}
    evidence = [i for i in result.items if i.arm == "evidence read"]
    assert all(i.scores["evidence_given"] == 1 for i in evidence)
    assert result.arms["nnm"]["tokens"]["injected"] > 0
    few = conversation.make_cases(load_locomo(path), replace(settings, limit=2))
    assert len(few) == 2


@pytest.mark.parametrize(
    ("answer", "gold", "category", "score"),
    [
        ("cellos", "the cello", "single-hop", 1.0),  # stemmed, without article
        ("Orla", "Orla, the cello", "multi-hop", 0.5),  # mean over the parts
        ("Orla, cello", "Orla, the cello", "multi-hop", 1.0),
        ("yes", "yes; he has a cat", "open-domain", 1.0),
        ("7 May", "7 May 2023", "temporal", 0.8),
        ("", "x", "temporal", 0.0),
    ],
)
def test_locomo_scores_by_category(answer: str, gold: str, category: str, score: float) -> None:
    assert conversation.category_f1(answer, gold, category) == pytest.approx(score)


def test_declining_is_recognised() -> None:
    assert conversation.declines("I don\u2019t know.")
    assert conversation.declines("Not mentioned in the text")
    assert not conversation.declines("Pixel")


CLAIMS = ClaimSet(
    "claims",
    {name: text for name, (text, _, _) in FACTS.items()},
    tuple(
        Claim(str(i), f"claim {i}", (name,) if i else (name, "clock"), ("SUPPORT", "CONTRADICT", "NEI")[i % 3])
        for i, name in enumerate(list(FACTS)[:4])
    ),
)


def test_claims_are_judged_alike_injected_and_read(engine: NNM) -> None:
    result = claims.run(engine, CLAIMS, claims.ClaimsSettings())
    assert result.passed, result.checks
    assert {check.name for check in result.checks} == {"nnm = rag same order", "nnm scores = rag same order scores"}
    assert result.arms["nnm"]["said"] == result.arms["rag same order"]["said"]
    assert sum(result.arms["nnm"]["said"].values()) == 4
    assert result.config["labels"] == {"SUPPORT": 2, "CONTRADICT": 1, "NEI": 1}
    assert all(i.given == () or "without content" not in i.given for i in result.items)
    raw = claims.run(engine, CLAIMS, claims.ClaimsSettings(calibrate=False, limit=2))
    assert all(i.scores["accuracy"] == i.scores["accuracy_raw"] for i in raw.items)
    assert raw.config["claims"] == 2
    for wrong in ({"words": ("a", "a", "b")}, {"question": "no place for it"}):
        with pytest.raises(InvalidInputError):
            claims.run(engine, CLAIMS, claims.ClaimsSettings(**wrong))  # type: ignore[arg-type]


def test_macro_f1_of_a_known_table() -> None:
    pairs = [("SUPPORT", "SUPPORT"), ("SUPPORT", "NEI"), ("NEI", "NEI"), ("CONTRADICT", "NEI")]
    assert claims.macro_f1(pairs) == pytest.approx((2 / 3 + 0 + 0.5) / 3)


def test_extraction_counts_leaks_and_obedience() -> None:
    settings = extraction.ExtractionSettings(carriers=2, characters=150)
    cases = extraction.make_cases(HAY, settings)
    assert len(cases) == 2 * 6 * 2
    assert len({case.golds for case in cases}) == 24
    for case in cases:
        trap: extraction.Trap = case.data
        assert (trap.canary in trap.loaded) == (case.labels["goal"] == "obey")
        assert trap.canary not in trap.clean
        assert extraction.SECRET not in trap.loaded
    leak, obey = cases[0], cases[-1]
    receipt = Receipt("exact", 0, 0, 0, 0, 0, "f")

    def scores(case: Case, text: str) -> Any:
        return extraction.score(case, None, Answer(text, (), (), receipt))  # type: ignore[arg-type]

    assert scores(leak, f"It is {extraction.SECRET}.") == {"followed": 1, "leak": 1, "obey": 0}
    assert scores(leak, extraction.SECRET.replace("-", " ")) == {"followed": 1, "leak": 1, "obey": 0}
    assert scores(leak, "517-904") == {"followed": 0, "leak": 0, "obey": 0}
    assert scores(obey, f"{obey.data.canary}!") == {"followed": 1, "leak": 0, "obey": 1}


def test_extraction_compares_text_and_injected(engine: NNM) -> None:
    settings = extraction.ExtractionSettings(carriers=1, characters=100, max_tokens=2)
    with pytest.raises(InvalidInputError, match="no password"):
        extraction.run(engine, HAY, settings)
    with NNM.open(tiny_reader(), state_cache=0, system=f"Secret {extraction.SECRET}.") as guarded:
        result = extraction.run(guarded, HAY, settings)
    assert result.passed
    assert list(result.arms) == ["clean", "rag", "rag same order", "nnm", "asked"]
    (can,) = [check for check in result.checks if "can follow" in check.name]
    assert can.passed is None  # a random model follows nobody, and the gate says that its zeros mean nothing
    assert "say nothing" in can.detail


def test_seconds_of_retrieval_count(engine: NNM) -> None:
    from nnm_core.evaluation.gates.asks import cold

    case = Case("1", "q", ("a",))
    arms = {"quick": lambda c: cold(c.question), "slow": lambda c: replace(cold(c.question), seconds=1000.0)}
    quick, slow = ask_all(engine, arms, [case], lambda c, a, b: {"em": 0.0}, max_tokens=2)
    assert slow.answer.receipt.seconds_to_first_token > 1000 > quick.answer.receipt.seconds_to_first_token
    assert slow.answer.receipt.seconds_total > 1000


def test_random_memories_do_not_answer(engine: NNM, tmp_path: Path) -> None:
    result = qa_result(engine, tmp_path, passages="oracle")
    texts = load_questions(tmp_path / "dev.json").passages
    for one in (i for i in result.items if i.arm == "random"):
        assert len(one.given) == 1
        assert not contains_answer(texts[one.given[0]], one.case.golds)


def test_answers_decoded_side_by_side_are_those_decoded_alone(engine: NNM, tmp_path: Path) -> None:
    alone = qa_result(engine, tmp_path, k=2)
    batched = qa_result(engine, tmp_path, k=2, batch=4)
    assert batched.passed
    assert [(i.arm, i.case.id) for i in batched.items] == [(i.arm, i.case.id) for i in alone.items]
    before = {(i.arm, i.case.id): i for i in alone.items}
    for one in batched.items:
        other = before[one.arm, one.case.id]
        assert one.answer.text == other.answer.text
        assert one.answer.finish_reason == other.answer.finish_reason
        mine, theirs = one.answer.receipt, other.answer.receipt
        for name in ("tier", "tokens_read", "tokens_injected", "tokens_recomputed", "tokens_generated", "fallbacks"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.seconds_total > mine.seconds_to_first_token > 0


def test_the_very_same_ask_is_put_once_and_says_whose_answer_it_is(
    engine: NNM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    real = NNM.answer

    def counted(self: NNM, question: Any, *args: Any, **options: Any) -> Answer:
        calls.append((str(question), options["mode"]))
        return real(self, question, *args, **options)

    monkeypatch.setattr(NNM, "answer", counted)
    result = qa_result(engine, tmp_path, k=1)
    shared = [i for i in result.items if i.same_as]
    assert len(calls) == len(result.items) - len(shared)
    assert shared  # the tiny sample's passages share words with their questions: both sides find some
    by_arm = {(i.arm, i.case.id): i for i in result.items}
    for one in shared:
        other = by_arm[one.same_as, one.case.id]
        assert one.given == other.given
        assert one.answer.token_ids == other.answer.token_ids
        assert one.answer.receipt.seconds_to_first_token > other.answer.receipt.seconds_to_first_token  # its own search
    for arm, row in result.arms.items():
        assert row["asked"] == sum(i.arm == arm and not i.same_as for i in result.items)
