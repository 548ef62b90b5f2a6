from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from nnm_core.model.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def mini() -> LoadedModel:
    """The bundled reader model, or the one that the environment variable NNM_TEST_MODEL names."""
    name = os.environ.get("NNM_TEST_MODEL", "nnm-mini")
    if name == "nnm-mini":
        package = importlib.util.find_spec("nnm_mini")
        if package is None or package.origin is None:
            pytest.skip("the package nnm-mini is not installed")
        if not (Path(package.origin).parent / "weights").is_dir():
            pytest.skip("the package nnm-mini has no weights here")
    return load_model(name)
