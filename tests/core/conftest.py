from __future__ import annotations

import importlib.util
import os

import pytest

from nnm_core.model.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def mini() -> LoadedModel:
    """The bundled reader model, or the one that the environment variable NNM_TEST_MODEL names."""
    name = os.environ.get("NNM_TEST_MODEL", "nnm-mini")
    if name == "nnm-mini":
        if importlib.util.find_spec("nnm_mini") is None:
            pytest.skip("the package nnm-mini is not installed")
        import nnm_mini

        if not any(nnm_mini.path().glob("*.safetensors")):
            pytest.skip("the package nnm-mini has no weights here")
    return load_model(name)
