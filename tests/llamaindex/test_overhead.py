"""The overhead benchmark runs and writes what it promises; what it measures is not asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.llamaindex.reader import reader

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "llamaindex_overhead.py"


def test_the_benchmark_writes_arms_and_config(tmp_path: Path) -> None:
    model = reader()
    model.hf.save_pretrained(tmp_path / "tiny")
    model.tokenizer.save_pretrained(tmp_path / "tiny")
    command = [sys.executable, str(PROGRAM), "--model", str(tmp_path / "tiny"), "--json", str(tmp_path / "r.json")]
    done = subprocess.run([*command, "--texts", "3", "--questions", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["config"]["questions"] == 2
    assert {"engine: answer", "ask: NNMQueryEngine", "recall: VectorStoreIndex"} <= set(report["arms"])
    assert all({"median_ms", "added_ms"} == set(values) for values in report["arms"].values())
