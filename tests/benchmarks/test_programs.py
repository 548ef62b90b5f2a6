"""The benchmarks run and write what they promise; what they measure is not asserted here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.core.families import make
from tests.core.tiny import byte_tokenizer

from nnm_core.evaluation.embedders import minilm_is_installed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make("qwen3").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("program", "options", "arms"),
    [
        (
            "ttft.py",
            ["--lengths", "40", "80", "--codecs", "int8"],
            {"read", "injected", "injected again", "ram", "int8"},
        ),
        ("ingest.py", ["--passages", "4", "--tokens", "40"], {"forward", "backbone", "add", "add in RAM", "fuse"}),
    ],
)
def test_a_benchmark_writes_arms_config_and_plot(
    reader: Path, tmp_path: Path, program: str, options: list[str], arms: set[str]
) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / program), "--model", str(reader), "--device", "cpu"]
    command += ["--repeats", "2", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["arms"]) == arms
    assert report["config"]["model"] == str(reader)
    assert report["config"]["repeats"] == 2
    assert report["ratio"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_gpu_benchmark_runs_without_a_gpu_and_makes_its_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/ttft_gpu.py"), "--shape", "tiny", "--device", "cpu"]
    command += ["--dtype", "float32", "--lengths", "40", "80", "--repeats", "1", "--json", str(tmp_path / "r.json")]
    done = subprocess.run([*command, "--disk-to", "40"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["arms"]["ram"]["seconds_to_first_token"]) == {"40", "80"}
    assert set(report["arms"]["disk"]["seconds_to_first_token"]) == {"40"}
    assert {"int8", "int4", "gpu", "first use", "plain"} <= set(report["arms"])
    # In float32 and on one device everything is the same computation: the same tokens, all of them.
    assert all(share == 1.0 for row in report["agreement"].values() for share in row.values())


@pytest.fixture(scope="module")
def long_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "long"
    make("qwen3", max_position_embeddings=8192).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def report_of(program: str, reader: Path, folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / program), "--model", str(reader), "--device", "cpu"]
    command += ["--json", str(folder / "r.json"), "--max-tokens", "3", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "r.json").read_text())
    return report


@pytest.mark.skipif(not minilm_is_installed(), reason="needs the extra 'demo'")
def test_equal_budget_pairs_the_arms_at_the_same_tokens(long_reader: Path, tmp_path: Path) -> None:
    sizes = ["--questions", "3", "--timed", "1", "--read", "1", "2", "--composed", "1", "2"]
    report = report_of("equal_budget.py", long_reader, tmp_path, *sizes, "--plot", str(tmp_path / "r.png"))
    assert {arm: list(cells) for arm, cells in report["arms"].items()} == {
        "rag": ["1", "2"],
        "exact": ["1", "2"],
        "composed": ["1", "2"],
    }
    for cells in (report["arms"]["rag"], report["arms"]["exact"]):
        for row in cells.values():
            assert row["same_answer_as_reading"] == row["timed"] == 1
            assert row["dropped_passages"] == 0
    assert {(row["arm"], row["rag_passages"], row["passages"]) for row in report["same_tokens"]} == {
        ("exact", 1, 1),
        ("exact", 2, 2),
        ("composed", 1, 1),
        ("composed", 2, 2),
    }
    assert all(row["mcnemar"]["count"] == 3 for row in report["same_tokens"])
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_original_claims_are_measured_with_the_mistake_and_without(long_reader: Path, tmp_path: Path) -> None:
    report = report_of(
        "original_claims.py", long_reader, tmp_path, "--questions", "2", "--cases", "4", "--limit", "500"
    )
    before = report["arms"]["layout: before, injected"]
    assert before["same_answer_as_read"] == before["items"] == 2
    assert {name for name in report["arms"] if name.startswith("needle")} == {
        f"needle: {arm}, {kind}" for arm in ("RAG", "NNM") for kind in ("cut", "whole")
    }
    (first, *_) = report["published"]
    assert first["as_counted"]["p"] < 0.01 < 0.2 < first["each_item_once"]["p"]


def test_exactness_is_counted_at_second_use_and_against_reading(long_reader: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/exactness.py"), "--model", str(long_reader)]
    command += ["--prompts", "11", "--tokens", "30", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    arms = json.loads((tmp_path / "r.json").read_text())["arms"]
    first, later = arms["8 memories, first use"], arms["1 to 8 memories, second use"]
    assert (first["prompts"], later["prompts"]) == (2, 11)
    assert [arm["equal"] for arm in arms.values()] == [arm["prompts"] for arm in arms.values()]
    assert max(arm["largest"] for arm in arms.values()) < 1e-3
    # At second use nothing but the question is read; at first use seven of eight passages are.
    longest = arms["8 memories, second use"]
    assert longest["read"] < 0.5 * longest["injected"] < first["read"]
    assert longest["read"] / longest["prompts"] == pytest.approx(later["read"] / later["prompts"], rel=0.5)


def test_another_answer_or_another_end_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    greedy = importlib.import_module("exactness").greedy
    engine = SimpleNamespace(model=SimpleNamespace(eos_token_ids={2}))
    logits = torch.eye(5)[[3, 4, 2, 0]]  # reading says 3, 4, end
    assert greedy(engine, [3, 4, 2], logits)
    assert not greedy(engine, [3, 1, 2], logits)
    assert not greedy(engine, [3, 4], logits[:3]), "it has stopped though reading goes on"
