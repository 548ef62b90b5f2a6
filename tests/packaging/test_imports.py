"""Importing the adapters or the command line must stay light, and what they offer must not change by accident."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "qdrant_client", "qdrant_edge", "matplotlib", "scipy")

PUBLIC = {
    "nnm_core": {
        "NNM",
        "Answer",
        "Chunk",
        "ContextOverflowError",
        "EngineClosedError",
        "FilterError",
        "Hit",
        "InvalidInputError",
        "InjectionSettings",
        "JsonSchema",
        "Memory",
        "MemoryNotFoundError",
        "MemoryNotInjectedError",
        "MemoryUse",
        "Message",
        "ModelError",
        "ModelNotFoundError",
        "NNMError",
        "PositionError",
        "Receipt",
        "StorageError",
        "StoreLockedError",
        "StoreMismatchError",
        "UnsupportedModelError",
        "__version__",
    },
    "langchain_nnm": {
        "NNMLLM",
        "ChatNNM",
        "NNMEmbeddings",
        "NNMMiddleware",
        "NNMRetriever",
        "NNMVectorStore",
        "__version__",
    },
    "llamaindex_nnm": {
        "NNMLLM",
        "NNMEmbedding",
        "NNMMemory",
        "NNMQueryEngine",
        "NNMReceiptEvent",
        "NNMRetriever",
        "NNMSynthesizer",
        "NNMVectorStore",
        "NotPicklableError",
        "__version__",
        "receipts",
    },
}


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["nnm_core", "langchain_nnm", "llamaindex_nnm"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert not modules_after(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_public_names_are_pinned(module: str) -> None:
    assert set(importlib.import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_every_public_name_resolves(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in loaded.__all__ if not hasattr(loaded, name)]
    assert not missing


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        importlib.import_module("nnm_core").Nothing  # noqa: B018
