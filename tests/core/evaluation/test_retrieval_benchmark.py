"""The benchmark program, run as a user runs it, on a tiny set and a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.core.families import byte_tokenizer, make

from nnm_core.cli.eval_retrieval import _Report
from nnm_core.evaluation.datasets import load_beir

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
    queries = [{"_id": f"q{a}", "text": f"Where does the {a} live?"} for a in ANIMALS[:7]]
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (data / "qrels" / "test.tsv").write_text("\n".join(f"q{a}\t{a}\t1" for a in ANIMALS[:4]))
    (data / "qrels" / "train.tsv").write_text("\n".join(f"q{a}\t{a}\t1" for a in ANIMALS[4:7]))
    return root / "model", data


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_program_writes_every_arm_with_its_metrics_and_what_was_chosen(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = folders
    out, runs, evidence = tmp_path / "retrieval.json", tmp_path / "runs.json.gz", tmp_path / "evidence.npz"
    small = ["--labels", 6, "--trial-depth", 4, "--depth", 5, "--subset", "3x8"]
    small += ["--tune-split", "train", "--tune-queries", 2, "--document-expansion", 5]
    saved = ["--save-runs", runs, "--save-evidence", evidence, "--json", out]
    done = run(
        PROGRAM, data, "--model", model, "--device", "cpu", "--layers", "profile", "--baselines", "bm25", *small, *saved
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    expected = {"bm25s (stemmed)", "sparse", "sparse + LM-head expansion", "dense off", "dense one-pass, whitened"}
    expected |= {"hybrid", "hybrid, 8 bits", "hybrid + tokens", "attention alone", "dense, 8 bits"}
    expected |= {"sparse + document expansion", "NNM (weights from judged queries)"}
    assert expected <= set(result["arms"])
    for metrics in result["arms"].values():
        assert {"ndcg@10", "recall@100", "mrr@10"} <= set(metrics)
        assert metrics["ndcg@10_interval"][0] <= metrics["ndcg@10"] <= metrics["ndcg@10_interval"][1]
    assert result["arms"]["sparse"]["ndcg@10"] == 1.0
    assert result["arms"]["sparse"]["ndcg@10_minus_bm25s (stemmed)"]["count"] == 4
    assert {
        "whitening",
        "re-routing in one pass",
        "8 bits, dense",
        "8 bits, hybrid",
        "8 bits, hybrid of equal parts",
        "both",
    } <= set(result["ablation"])
    full, small_set = result["config"]["sets"].values()
    assert (full["documents"], small_set["documents"], small_set["queries"]) == (12, 8, 3)
    assert full["rerank"]["weights"]["first"] == 1.0
    assert full["judged"]["data"] == "data/train[2x12]"
    assert full["judged"]["queries"] == 2
    assert len(full["layer_profile"]["rows"]) == 4
    assert list(result["sets"]) == ["data/test[3x8]"]
    assert "LM-head expansion" in done.stdout
    with np.load(evidence) as arrays:
        assert arrays["qowl/attention"].shape == (len(arrays["qowl/names"]), 4 * 4)
        gains = arrays["qowl/gains"].astype(np.float32)
        assert (np.diff(arrays["qowl/first"]) <= 0).all()
        weights = arrays["qowl/surprise"].astype(np.float32)
        np.testing.assert_allclose(gains @ weights / weights.sum(), arrays["qowl/likelihood"], atol=1e-2)
    with np.load(evidence.with_suffix(".judged.npz")) as arrays:
        assert {name.split("/")[0] for name in arrays} == {"qdog", "qhen"}

    again = tmp_path / "again.json"
    replayed = run(PROGRAM, data, "--runs", runs, "--baselines", "bm25", "--subset", "3x8", "--json", again)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(again.read_text())["arms"] == result["arms"]
    assert json.loads(again.read_text())["config"] == result["config"]  # how it was measured, not how it was replayed
    assert not {"--json", "--save-runs", "--save-evidence"} & set(result["config"]["command"].split())


def test_the_first_set_is_written_before_the_second_is_measured(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = load_beir(folders[1]), tmp_path / "r.json"
    small = data.subset(2, 6)
    rankings = {query: [(next(iter(judged)), 1.0)] for query, judged in data.qrels.items()}
    report = _Report(out)
    report.add(data, {"sparse": rankings}, {"seconds": 1.0})
    first = json.loads(out.read_text())
    assert first["arms"]["sparse"]["ndcg@10"] == 1.0
    assert first["sets"] == {}
    report.add(small, {"sparse": {query: rankings[query] for query in small.queries}}, {"seconds": 2.0})
    both = json.loads(out.read_text())
    assert both["arms"] == first["arms"]
    assert list(both["sets"]) == [small.name]
    assert both["config"] == {"seconds": 2.0}


def test_wrong_use_is_explained(folders: tuple[Path, Path], tmp_path: Path) -> None:
    missing = run(PROGRAM)
    assert missing.returncode == 2
    assert "DATA" in missing.stderr
    nowhere = run(PROGRAM, tmp_path)
    assert nowhere.returncode == 1
    assert "corpus.jsonl" in nowhere.stderr
    own = run(PROGRAM, folders[1], "--tune-split", "test")
    assert own.returncode == 2
    assert "--tune-split" in own.stderr
    pool = run(PROGRAM, tmp_path, "--routes", "sideways")
    assert pool.returncode != 0
