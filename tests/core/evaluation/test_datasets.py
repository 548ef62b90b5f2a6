from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets import load_beir


def write(root: Path, *, compressed: bool = False) -> Path:
    (root / "qrels").mkdir(parents=True)
    corpus = "".join(
        f'{{"_id": "{i}", "title": "{"T" + str(i) if i else ""}", "text": "text {i}"}}\n' for i in range(20)
    )
    if compressed:
        (root / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.encode()))
    else:
        (root / "corpus.jsonl").write_text(corpus)
    (root / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n\n{"_id": "q2", "text": "two"}\n')
    (root / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t3\t1\nq1\t4\t0\nq2\t5\t2\n")
    return root


@pytest.mark.parametrize("compressed", [False, True])
def test_a_folder_is_read(tmp_path: Path, compressed: bool) -> None:
    data = load_beir(write(tmp_path / "set", compressed=compressed))
    assert data.name == "set/test"
    assert data.documents["0"] == "text 0"
    assert data.documents["3"] == "T3\ntext 3"
    assert data.queries == {"q1": "one", "q2": "two"}
    assert data.qrels == {"q1": {"3": 1}, "q2": {"5": 2}}


def test_a_subset_holds_its_answers_and_is_the_same_every_time(tmp_path: Path) -> None:
    data = load_beir(write(tmp_path / "set"))
    small = data.subset(1, 6)
    assert list(small.queries) == ["q1"]
    assert "3" in small.documents
    assert len(small.documents) == 6
    assert small == data.subset(1, 6)


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no corpus\.jsonl"):
        load_beir(tmp_path)
    root = write(tmp_path / "set")
    (root / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n{"text": "two"}\n')
    with pytest.raises(InvalidInputError, match="line 2"):
        load_beir(root)


def test_judgements_of_unknown_documents_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    (root / "qrels" / "test.tsv").write_text("q1\t99\t1\n")
    with pytest.raises(InvalidInputError, match="unknown"):
        load_beir(root)
