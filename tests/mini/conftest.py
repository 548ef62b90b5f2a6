"""The training programs are no installed package: their folder is put on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "packages" / "nnm-mini"
sys.path[:0] = [str(PACKAGE / "src"), str(PACKAGE / "training")]


@pytest.fixture(scope="session")
def training() -> Path:
    return PACKAGE / "training"


@pytest.fixture(scope="session")
def data() -> Path:
    folder = PACKAGE.parents[1].parent / "shared" / "data"
    if not (folder / "squad").is_dir():
        pytest.skip("the reading sets are not here")
    return folder
