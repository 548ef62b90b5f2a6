"""Each example runs, with the bundled model or the one that NNM_TEST_MODEL names, and shows what it promises."""

from __future__ import annotations

import importlib.util
import os
import runpy
from pathlib import Path

import pytest

from nnm_core.model.load import LoadedModel, load_model

EXAMPLES = Path(__file__).parents[2] / "examples"
# The words of answers depend on the model; what was injected does not.
SHOWN = {
    "llamaindex_query_engine": ["first use ", "tier=exact", "filtered   ['work']"],
    "llamaindex_by_reference": ["one line ", "tier=exact memories=['injected']", "streaming "],
    "llamaindex_chat": ["8 turns kept", "  user: My sister Ana lives", "3 memories after"],
    "llamaindex_ingestion": ["first run: 2 nodes", "again: 0 nodes", "one changed: 1 nodes, 2 in memory"],
    "llamaindex_side_by_side": ["classic ", "nnm, again "],
}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    name = os.environ.get("NNM_TEST_MODEL", "nnm-mini")
    if name == "nnm-mini":
        if importlib.util.find_spec("nnm_mini") is None:
            pytest.skip("the package nnm-mini is not installed")
        import nnm_mini

        if not any(nnm_mini.path().glob("*.safetensors")):
            pytest.skip("the package nnm-mini has no weights here")
    return load_model(name)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("llamaindex_*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_examples_run(name: str, model: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](model)
    shown = capsys.readouterr().out
    for expected in SHOWN[name]:
        assert expected in shown
