"""The benchmark program, run as a user runs it, on a tiny set and a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.core.families import byte_tokenizer, make

pytest.importorskip("ranx")
pytest.importorskip("Stemmer")

PROGRAM = Path(__file__).parents[3] / "benchmarks" / "retrieval.py"
ANIMALS = ("owl", "fox", "cat", "bat", "dog", "hen", "pig", "cow", "ant", "bee", "elk", "emu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("benchmark")
    make("qwen3").save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    data = root / "data"
    (data / "qrels").mkdir(parents=True)
    rows = [
        {"_id": a, "title": f"The {a}", "text": f"The {a} lives in the wood. It eats a lot every day. The {a} sleeps."}
        for a in ANIMALS
    ]
    (data / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    queries = [{"_id": f"q{a}", "text": f"Where does the {a} live?"} for a in ANIMALS[:4]]
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (data / "qrels" / "test.tsv").write_text("\n".join(f"q{a}\t{a}\t1" for a in ANIMALS[:4]))
    return root / "model", data


@pytest.mark.slow
def test_the_program_writes_every_arm_with_its_metrics_and_what_was_chosen(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = folders
    out = tmp_path / "retrieval.json"
    command = [sys.executable, PROGRAM, "--model", model, "--data", data, "--json", out, "--no-baselines"]
    options = ["--device", "cpu", "--labels", "6", "--trial-depth", "4", "--depth", "5", "--layers", "profile"]
    run = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(out.read_text())
    assert {"sparse", "dense off", "dense one-pass whitened", "hybrid", "attention alone"} <= set(result["arms"])
    for metrics in result["arms"].values():
        assert {"ndcg@10", "recall@100", "mrr@10"} <= set(metrics)
        assert metrics["ndcg@10_interval"][0] <= metrics["ndcg@10"] <= metrics["ndcg@10_interval"][1]
    assert result["arms"]["sparse"]["ndcg@10"] == 1.0
    assert result["config"]["rerank"]["weights"]["first"] == 1.0
    assert len(result["config"]["layer_profile"]["rows"]) == 4
    assert "sparse" in run.stdout


def test_the_data_must_be_named(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "--data" in run.stderr
