"""Importing the adapters or the command line must stay light, and what they offer must not change by accident."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "qdrant_client", "qdrant_edge", "matplotlib", "scipy")

PUBLIC = {
    "nnm_core": {
        "NNM",
        "Answer",
        "Answering",
        "Chunk",
        "Composer",
        "ContextOverflowError",
        "Costs",
        "EngineClosedError",
        "FilterError",
        "Grammar",
        "Hit",
        "InvalidInputError",
        "InjectionSettings",
        "JsonSchema",
        "LayerProfile",
        "LoadedModel",
        "Memory",
        "MemoryNotFoundError",
        "MemoryNotInjectedError",
        "MemoryUse",
        "Message",
        "Missing",
        "Mode",
        "ModelError",
        "ModelNotFoundError",
        "NNMError",
        "Order",
        "Overflow",
        "Planner",
        "Policy",
        "PositionError",
        "Quality",
        "Receipt",
        "Role",
        "Scores",
        "SelfTest",
        "StorageError",
        "StoreLockedError",
        "StoreMismatchError",
        "StoreSettings",
        "Tier",
        "UnsupportedModelError",
        "UseAction",
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

# Given and taken as wholes: what stands in their own signatures is not the public face.
WHOLES = {"Answering", "Composer", "Costs", "Grammar", "JsonSchema", "LayerProfile", "LoadedModel"}


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


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_the_types_of_public_signatures_are_public(module: str) -> None:
    public = importlib.import_module(module)
    importable = {
        id(getattr(importlib.import_module(name), item)) for name in {module, "nnm_core"} for item in PUBLIC[name]
    }
    hidden = {
        f"{kind.__module__}.{kind.__name__}: {where}"
        for name in PUBLIC[module] - WHOLES
        for where, hints in signatures(getattr(public, name))
        for kind in classes(hints)
        if kind.__module__.split(".")[0] in PUBLIC and id(kind) not in importable
    }
    assert not hidden


def signatures(thing: Any) -> Iterator[tuple[str, list[Any]]]:
    """The annotations of a public class's own fields and public methods, or of a function."""
    engine = importlib.import_module("nnm_core")
    known = {name: getattr(engine, name) for name in engine.__all__}  # some are imported for type checkers only
    members = inspect.getmembers(thing) if inspect.isclass(thing) else [("", thing)]
    for name, member in members:
        member = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        ours = inspect.isfunction(member) and member.__module__.split(".")[0] in PUBLIC
        if ours and (name == "__init__" or not name.startswith("_")):
            yield f"{thing.__name__}.{name}", list(get_type_hints(member, localns=known).values())


def classes(hints: Any) -> Iterator[type]:
    """All classes in annotations, however deep."""
    for hint in hints:
        yield from classes(hint if isinstance(hint, list) else get_args(hint))
        if inspect.isclass(hint):
            yield hint
