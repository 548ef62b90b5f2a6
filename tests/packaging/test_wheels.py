"""What is installed from a wheel is complete: type marker, licence, data, entry point, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = {
    "nnm-core": {
        "nnm_core/py.typed",
        "nnm_core/demo/data/passages.jsonl",
        "nnm_core/demo/data/questions.jsonl",
        "nnm_core/demo/data/NOTICE.md",
    },
    "langchain-nnm": {"langchain_nnm/py.typed"},
    "llamaindex-nnm": {"llamaindex_nnm/py.typed"},
}


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling, which make installs")
@pytest.mark.parametrize("distribution", NEEDED)
def test_a_wheel_is_complete(distribution: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / "packages" / distribution, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode() if f"{info}/entry_points.txt" in names else ""
    module = distribution.replace("-", "_")
    assert names >= NEEDED[distribution] | {f"{info}/licenses/LICENSE", f"{module}/_version.py"}
    assert {name.split("/")[0] for name in names} == {module, info}
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert "License-Expression: Apache-2.0" in metadata
    assert ("nnm = nnm_core.cli:main" in scripts) == (distribution == "nnm-core")
