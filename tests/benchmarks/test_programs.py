"""The benchmarks run and write what they promise; what they measure is not asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.core.families import make
from tests.core.tiny import byte_tokenizer

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
        ("ttft.py", ["--lengths", "40", "80"], {"read", "injected", "injected again"}),
        ("ingest.py", ["--passages", "4", "--tokens", "40"], {"forward", "backbone", "add", "add in RAM"}),
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
