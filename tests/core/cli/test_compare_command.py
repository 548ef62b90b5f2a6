"""``nnm compare`` from end to end, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.core.cli.conftest import Nnm
from tests.core.families import make
from tests.core.tiny import byte_tokenizer

from nnm_core.evaluation.compare.arms import LABELS


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "tiny"
    make("qwen3", max_position_embeddings=4096).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def documents(tmp_path: Path) -> str:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("The bins of the town of Lismore are collected every Tuesday, Maria Keane says.")
    (folder / "b.md").write_text("The library at the corner of the market square was opened in May 1931 by the mayor.")
    (folder / "c.txt").write_text("The project of the northern harbour is called Falcon and it costs 48,000 pounds.")
    return str(folder)


def test_own_documents_and_questions(real_nnm: Nnm, model: str, documents: str) -> None:
    Path("q.csv").write_text("question,answers\nWhen are the bins collected?,Tuesday\nWhat is the project?,Falcon\n")
    ran = real_nnm(
        "compare", documents, "--questions", "q.csv", "--embedder", "bm25", "-k", "2", "--max-tokens", "3",
        "--model", model, "--device", "cpu", "--out", "o", "--json", "o/c.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    report = json.loads(Path("o/c.json").read_text())
    assert list(report["arms"]) == list(LABELS)
    assert report["config"]["questions_generated"] is False
    assert report["config"]["retriever"] == "BM25"
    assert report["config"]["passages"] == 3
    assert len(report["items"]) == 2 * len(LABELS)
    assert "classic RAG" in ran.out
    assert "first token" in ran.out
    assert Path("o/compare.html").read_text().startswith("<!doctype html>")
    assert not Path("memory").exists(), "the documents are in no memory afterwards"


def test_without_questions_some_are_generated_and_that_is_said(real_nnm: Nnm, model: str, documents: str) -> None:
    ran = real_nnm(
        "compare", documents, "--embedder", "bm25", "-k", "1", "--max-tokens", "2", "--arms", "nnm,rag",
        "--no-latency", "--model", model, "--device", "cpu", "--json", "-",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert "generated" in ran.err
    assert report["config"]["questions_generated"] is True
    assert list(report["arms"]) == ["rag", "nnm"]
    assert report["latency"] == {}
    assert "generated from the documents by rule" in Path("out/compare/compare.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docs", "--arms", "rag,magic"], "magic"),
        (["none.txt"], "none.txt"),
        (["docs", "--questions", "none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_input_is_explained_before_a_model_is_loaded(
    real_nnm: Nnm, documents: str, arguments: list[str], message: str
) -> None:
    ran = real_nnm("compare", *arguments, "--model", "there-is-no-such-model")
    assert ran.code == 1
    assert message in ran.err
    assert "Traceback" not in ran.err
