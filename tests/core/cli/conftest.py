from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.core.cli.fake import FakeNNM

from nnm_core.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Nnm = Callable[..., Ran]


class Stdin(io.TextIOWrapper):
    """Piped input."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")

    def isatty(self) -> bool:
        return False


@pytest.fixture
def real_nnm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Nnm:
    """Run the command line in an empty folder; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("NNM_MODEL", "NNM_PATH", "NNM_NAMESPACE", "NNM_DEVICE", "NNM_URL", "NNM_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr("sys.stdin", Stdin(stdin))
        try:
            main(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def nnm(real_nnm: Nnm, monkeypatch: pytest.MonkeyPatch) -> Nnm:
    """The command line on a fake engine."""
    FakeNNM.reset()
    monkeypatch.setattr("nnm_core.NNM", FakeNNM, raising=False)
    return real_nnm
