"""Every format is read as it is meant, and a broken file says where and how."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.core.evaluation.samples import FACTS, locomo, squad, triviaqa, write_squad

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets import (
    download_beir,
    download_questions,
    load_claims,
    load_locomo,
    load_questions,
)
from nnm_core.evaluation.datasets.load import recognise
from nnm_core.evaluation.datasets.passages import cut


def test_squad_keeps_every_paragraph_and_each_gold_answer_once(tmp_path: Path) -> None:
    data = load_questions(write_squad(tmp_path / "dev.json"))
    assert list(data.passages) == ["Lund#0", "Lund#1", "Lund#2", "Skerry#0", "Skerry#1", "Skerry#2"]
    first = data.questions[0]
    assert (first.id, first.answers, first.passages) == ("harbour", ("1641",), ("Lund#0",))
    assert len(data.questions) == 6
    assert data.left_out == {}


def test_squad_compressed_and_with_impossible_questions(tmp_path: Path) -> None:
    path = tmp_path / "dev.json.gz"
    path.write_bytes(gzip.compress(json.dumps(squad("2.0")).encode()))
    data = load_questions(tmp_path / "dev.json")  # found with its ending
    assert {question.id for question in data.questions} == set(FACTS) - {"ferry"}
    assert data.left_out == {"marked as impossible to answer": 1}


def change(value: dict[str, Any], **fields: Any) -> dict[str, Any]:
    paragraph = value["data"][1]["paragraphs"][2]
    paragraph["qas"][0] |= fields
    return value


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            change(squad(), id="harbour"),
            r"data\[1\], paragraphs\[2\], qas\[0\]: a second question has the id 'harbour'",
        ),
        (change(squad(), answers=[{"text": "noon", "answer_start": 3}]), "'noon' does not stand at 3"),
        (change(squad(), question=" "), "'question' is empty"),
        (change(squad(), answers="noon"), "'answers' is a string, not a list"),
        ({"data": [{"title": "x", "paragraphs": [{"context": "y"}]}]}, r"paragraphs\[0\]: there is no 'qas'"),
        ({"data": []}, "no question that can be asked"),
    ],
)
def test_a_broken_squad_file_says_where(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_questions(path)
    assert "dev.json" in str(caught.value)
    assert "paragraphs" in caught.value.hint


def test_a_question_that_repeats_text_and_passage_is_counted_once(tmp_path: Path) -> None:
    value = squad()
    paragraph = value["data"][0]["paragraphs"][0]
    paragraph["qas"].append(paragraph["qas"][0] | {"id": "again"})
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(value))
    data = load_questions(path)
    assert "again" not in {question.id for question in data.questions}
    assert data.left_out == {"asked twice about the same passage": 1}


def test_triviaqa_golds_hold_an_answer_after_cutting(tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    pages = tmp_path / "evidence" / "wikipedia"
    pages.mkdir(parents=True)
    filler = " ".join(f"word{i}" for i in range(150))
    (pages / "Harbour.txt").write_text(f"{filler}.\n\n{FACTS['harbour'][0]}")
    path = tmp_path / "qa" / "dev.json"
    path.write_text(json.dumps(triviaqa()))
    data = load_questions(path)
    assert [question.id for question in data.questions] == ["tc_1"]
    assert data.left_out == {"without a passage that holds an answer": 1}
    (gold,) = data.questions[0].passages
    assert gold != "wikipedia/Harbour.txt#0"  # the first passage is cut off before the answer
    assert "1641" in data.passages[gold]
    assert all(len(text.split()) <= 120 for text in data.passages.values())


def test_triviaqa_without_evidence_has_questions_only(tmp_path: Path) -> None:
    path = tmp_path / "unfiltered.json"
    path.write_text(json.dumps(triviaqa()))
    data = load_questions(path)
    assert [question.passages for question in data.questions] == [(), ()]
    assert data.questions[0].answers == ("1641", "sixteen forty-one")
    with pytest.raises(InvalidInputError, match="no such folder"):
        load_questions(path, evidence=tmp_path / "none")
    (tmp_path / "evidence").mkdir()
    with pytest.raises(InvalidInputError, match="there is no document"):
        load_questions(path)


def test_nq_open_lines_and_dpr_items(tmp_path: Path) -> None:
    lines = tmp_path / "NQ-open.dev.jsonl"
    lines.write_text('{"question": "when", "answer": ["1641", "1641"]}\n\n{"question": "who", "answer": ["Maud"]}\n')
    data = load_questions(lines)
    assert [(q.id, q.text, q.answers) for q in data.questions] == [("1", "when", ("1641",)), ("2", "who", ("Maud",))]
    lines.write_text('{"question": "when", "answer": "1641"}\n')
    with pytest.raises(InvalidInputError, match=r"line 1: 'answer' is a string, not a list"):
        load_questions(lines, format="nq")
    dpr = tmp_path / "nq-dev.json"
    text, question, answer = FACTS["choir"]
    item = {
        "question": question,
        "answers": [answer],
        "positive_ctxs": [{"title": "Choir", "text": text}, {"title": "Other", "text": "nothing here"}],
        "hard_negative_ctxs": [{"title": "Bakery", "text": FACTS["bakery"][0]}],
    }
    dpr.write_text(json.dumps([item]))
    data = load_questions(dpr)
    assert len(data.passages) == 3
    assert [data.passages[name] for name in data.questions[0].passages] == [f"Choir\n{text}"]


def test_plain_lines_share_passages(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows: list[dict[str, Any]] = [
        {"question": "a?", "answers": ["x"], "passages": ["one x", "two"], "category": "easy"},
        {"question": "b?", "answer": "x", "context": "one x"},
        {"context": "three", "qas": [{"question": "c?", "answer": "three"}, {"question": "d?", "answer": "three"}]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    data = load_questions(path)
    assert sorted(data.passages.values()) == ["one x", "three", "two"]
    assert [question.id for question in data.questions] == ["1", "2", "3.1", "3.2"]
    assert data.questions[0].passages[0] == data.questions[1].passages[0]
    assert data.questions[0].category == "easy"


def test_formats_are_recognised_and_nonsense_is_not(tmp_path: Path) -> None:
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps(squad(), indent=2))
    assert recognise(pretty) == "squad"
    pretty.write_text(json.dumps(triviaqa(), indent=2))
    assert recognise(pretty) == "triviaqa"
    for text in ("", "hello", '{"x": 1}'):
        pretty.write_text(text)
        with pytest.raises(InvalidInputError, match="none of the formats"):
            load_questions(pretty)
    with pytest.raises(InvalidInputError, match="no such file"):
        load_questions(tmp_path / "absent.json")
    pretty.write_bytes(b"\xff\xfe{")
    with pytest.raises(InvalidInputError, match="not UTF-8, byte 0xff"):
        load_questions(pretty)


def test_a_sample_is_of_unique_questions_and_the_same_every_time(tmp_path: Path) -> None:
    data = load_questions(write_squad(tmp_path / "dev.json"))
    few = data.sample(3, seed=5)
    assert len({question.id for question in few.questions}) == 3
    assert few == data.sample(3, seed=5)
    assert any(few.questions != data.sample(3, seed=seed).questions for seed in range(5))
    assert data.sample(99) is data
    assert few.passages is data.passages


def test_locomo_turns_are_passages_with_speaker_and_date(tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(locomo()))
    (conversation,) = load_locomo(path)
    data = conversation.questions
    assert conversation.id == "conv-1"
    assert data.passages["D1:1"] == "[1:10 pm on 3 May, 2021] Ana: I have started to learn the cello."
    assert data.passages["D2:2"].endswith("name is Pixel. (shares an image: a grey cat on a chair)")
    by_category = {question.category: question for question in data.questions}
    assert by_category["multi-hop"].passages == ("D1:1", "D2:1")  # two names in one string
    assert by_category["temporal"].passages == ("D1:2",)  # D9:9 does not exist
    assert by_category["temporal"].answers == ("2021",)
    assert "not mentioned" in by_category["adversarial"].answers


def test_broken_locomo_files(tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    for spoil, message in (
        (lambda value: value[0]["conversation"]["session_2"].append({"dia_id": "D1:1", "speaker": "A", "text": "x"}),
         "a second turn is called 'D1:1'"),
        (lambda value: value[0]["qa"][0].update(category=9), "category 9"),
        (lambda value: value.append(value[0]), "a second conversation"),
        (lambda value: value[0].pop("conversation"), "there is no 'conversation'"),
    ):  # fmt: skip
        value = locomo()
        spoil(value)
        path.write_text(json.dumps(value))
        with pytest.raises(InvalidInputError, match=message):
            load_locomo(path)


def beir_with_labels(root: Path, *, labels: bool = True) -> Path:
    (root / "qrels").mkdir(parents=True)
    (root / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "d{i}", "title": "T", "text": "text {i}"}}\n' for i in range(3))
    )
    rows = [
        {"_id": "1", "text": "c1", "metadata": {"d0": [{"label": "SUPPORT", "sentences": [0]}]}},
        {"_id": "2", "text": "c2", "metadata": {"d1": [{"label": "CONTRADICT", "sentences": [1]}]}},
        {"_id": "3", "text": "c3", "metadata": {}},
    ]
    if not labels:
        rows = [row | {"metadata": {}} for row in rows]
    (root / "queries.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (root / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td0\t1\n2\td1\t1\n3\td2\t1\n")
    return root


def test_claims_from_a_folder_and_from_lines(tmp_path: Path) -> None:
    data = load_claims(beir_with_labels(tmp_path / "set"))
    assert [(claim.id, claim.label, claim.documents) for claim in data.claims] == [
        ("1", "SUPPORT", ("d0",)),
        ("2", "CONTRADICT", ("d1",)),
        ("3", "NEI", ("d2",)),
    ]
    lines = tmp_path / "claims.jsonl"
    lines.write_text(
        '{"claim": "c", "label": "support", "evidence": "e"}\n{"claim": "d", "label": "NEI", "evidence": "e"}'
    )
    data = load_claims(lines)
    assert [claim.label for claim in data.claims] == ["SUPPORT", "NEI"]
    assert len(data.documents) == 1
    lines.write_text('{"claim": "c", "label": "maybe", "evidence": "e"}')
    with pytest.raises(InvalidInputError, match=r"line 1: the label is 'MAYBE'"):
        load_claims(lines)


def test_a_folder_without_labels_is_no_claim_set(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no query has a label") as caught:
        load_claims(beir_with_labels(tmp_path / "set", labels=False))
    assert "claims file" in caught.value.hint


def test_passages_are_cut_at_sentences_and_never_longer() -> None:
    text = "One two three. Four five.\n\nSix seven eight nine. " + " ".join(str(i) for i in range(25))
    passages = cut(text, words=10)
    assert passages[0] == "One two three. Four five. Six seven eight nine."
    assert " ".join(passages).split() == text.split()
    assert max(len(passage.split()) for passage in passages) <= 10


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: dict[tuple[str, str | None, str], list[dict[str, Any]]]) -> None:
    def load_dataset(repository: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        if (repository, config, split) not in rows:
            raise ValueError("no such split")
        return rows[repository, config, split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]


def test_sets_from_the_hub_become_the_same_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    text, question, answer = FACTS["harbour"]
    trivia = {
        "question_id": "t1",
        "question": question,
        "answer": {"value": answer, "aliases": [answer]},
        "entity_pages": {"title": ["Harbour"], "wiki_context": [text]},
    }
    fake_hub(
        monkeypatch,
        {
            ("rajpurkar/squad", None, "validation"): [
                {"id": "1", "title": "L", "context": text, "question": question, "answers": {"text": [answer]}}
            ],
            ("mandarjoshi/trivia_qa", "rc.wikipedia", "validation"): [
                trivia,
                trivia | {"question_id": "t2", "answer": {"value": "Tove", "aliases": []}},
            ],
            ("google-research-datasets/nq_open", None, "train"): [{"question": "who", "answer": ["Maud"]}],
            ("BeIR/scifact", "corpus", "corpus"): [{"_id": "d", "title": "T", "text": "x"}],
            ("BeIR/scifact", "queries", "queries"): [{"_id": "q", "title": "", "text": "y"}, {"_id": "z", "text": ""}],
            ("BeIR/scifact-qrels", None, "test"): [{"query-id": "q", "corpus-id": "d", "score": 1}],
        },
    )
    squad_set = download_questions("squad")
    assert [squad_set.passages[name] for name in squad_set.questions[0].passages] == [text]
    trivia_set = download_questions("trivia_qa")
    assert [q.id for q in trivia_set.questions] == ["t1"]
    assert trivia_set.left_out == {"without a passage that holds an answer": 1}
    assert download_questions("nq_open", "train").questions[0].answers == ("Maud",)
    beir = download_beir("scifact")
    assert (beir.documents, beir.queries, beir.qrels) == ({"d": "T\nx"}, {"q": "y"}, {"q": {"d": 1}})
    with pytest.raises(InvalidInputError, match="cannot be fetched") as caught:
        download_questions("squad", "nonsense")
    assert "path" in caught.value.hint
    with pytest.raises(InvalidInputError, match="no set that can be fetched"):
        download_questions("imagenet")


def test_without_the_package_the_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInputError, match="Fetching sets needs `datasets`") as caught:
        download_questions("squad")
    assert "nnm-core[hub]" in caught.value.hint
