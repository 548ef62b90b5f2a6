"""The benchmark of the adapter runs and writes what it promises; what it measures is not asserted here."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from nnm_core.model.load import LoadedModel

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "langchain_overhead.py"


def test_the_benchmark_runs(reader: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "overhead.json"
    options = ["--model", reader.name, "--tokens", "20", "--repeats", "2", "--max-tokens", "2", "--clock", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *options, "--json", str(target)])
    runpy.run_path(str(PROGRAM))["main"]()
    report = json.loads(target.read_text())
    assert set(report["arms"]) == {"engine", "thread", "invoke", "stream", "astream", "prompt"}
    assert set(report["overhead"]["injected"]) == {"thread", "invoke", "stream", "astream", "prompt"}
    assert report["config"]["clock"] == "cpu"
