from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
from tests.langchain.engines import BINS, FALCON, KEY, open_tiny

from nnm_core import NNM
from nnm_core.model.load import LoadedModel, load_model


@pytest.fixture
def nnm() -> Iterator[NNM]:
    """A tiny engine with three memories: bins, falcon, key."""
    with open_tiny() as opened:
        opened.add([BINS, FALCON, KEY], ids=["bins", "falcon", "key"], metadatas=[{"n": 1}, {"n": 2}, {"n": 3}])
        yield opened


@pytest.fixture(scope="session")
def reader() -> LoadedModel:
    """The bundled model, or the one that NNM_TEST_MODEL names."""
    name = os.environ.get("NNM_TEST_MODEL", "nnm-mini")
    if name == "nnm-mini":
        if importlib.util.find_spec("nnm_mini") is None:
            pytest.skip("the package nnm-mini is not installed")
        import nnm_mini

        if not any(nnm_mini.path().glob("*.safetensors")):
            pytest.skip("the package nnm-mini has no weights here")
    return load_model(name)
