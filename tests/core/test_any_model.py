"""The promises on a model of your own: ``NNM_TEST_MODEL=FOLDER pytest tests/core/test_any_model.py``.

`benchmarks/smollm2.py` makes such a folder. Without it nothing here runs: the suite needs no model but the bundled one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnm_core import NNM

FOLDER = os.environ.get("NNM_TEST_MODEL", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="NNM_TEST_MODEL names no model")
TEXTS = {
    "bins": "The bins of Marlow Street are collected on Tuesday, those of Abbey Road on Friday.",
    "shop": "The shop opens at nine. A loaf of bread costs 4 francs, and its manager is called Irene Kessler.",
    "boat": "The boat to the island leaves every two hours; the last one is at half past six.",
}
QUESTIONS = ("When are the bins of Abbey Road collected?", "Who is the manager of the shop?")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NNM]:
    path: Path = tmp_path_factory.mktemp("memory")
    with NNM.open(FOLDER, path=path, device="cpu") as nnm:
        nnm.add(list(TEXTS.values()), ids=list(TEXTS))
        yield nnm


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("order", [("bins",), ("shop", "bins"), ("boat", "bins", "shop")])
def test_injected_is_read_at_first_and_at_second_use(engine: NNM, question: str, order: tuple[str, ...]) -> None:
    read = engine.answer(question, memories=list(order), mode="read", max_tokens=24)
    for _ in range(2):
        answer = engine.answer(question, memories=list(order), policy="exact", max_tokens=24)
        assert answer.token_ids == read.token_ids
    assert answer.receipt.tier == "exact"
    assert answer.receipt.tokens_read < 60 < answer.receipt.tokens_injected + 60
    assert all(part.action == "exact" for part in answer.receipt.parts)


@pytest.mark.parametrize("composer", ["concatenate", "guided-offset", "parallel"])
def test_memories_are_composed(engine: NNM, composer: str) -> None:
    answer = engine.answer(QUESTIONS[0], memories=list(TEXTS), policy="fast", composer=composer, max_tokens=8)
    assert answer.receipt.tier == "composed"
    assert answer.text


@pytest.mark.parametrize("codec", ["int8", "int4", "residual-int8", "int8:keep=0.6"])
def test_codecs_keep_its_states(engine: NNM, codec: str) -> None:
    with NNM.open(engine.model, codec=codec) as nnm:
        nnm.add(TEXTS["shop"], ids="shop")
        receipt = nnm.answer(QUESTIONS[1], memories=["shop"], max_tokens=8).receipt
    assert receipt.tier == "compressed"
    assert receipt.parts[0].codec == codec
