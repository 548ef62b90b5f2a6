"""Generated conversations are valid ones, and their answers stand in the turns that are named as evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnm_core.evaluation.datasets import load_locomo


def test_answers_stand_in_their_evidence_and_adversarial_ones_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from made_conversations import conversations

    path = tmp_path / "made.json"
    path.write_text(json.dumps(conversations(3, seed=1)))
    found = load_locomo(path)
    assert len(found) == 3
    for conversation in found:
        passages = conversation.questions.passages
        kinds = {question.category for question in conversation.questions.questions}
        assert kinds == {"single-hop", "temporal", "multi-hop", "adversarial"}
        texts = [question.text for question in conversation.questions.questions]
        assert len(set(texts)) == len(texts)
        for question in conversation.questions.questions:
            if question.category == "adversarial":
                assert not question.passages
                continue
            given = " ".join(passages[name] for name in question.passages)
            assert all(part in given for part in question.answers[0].split(", ")), question
    assert json.dumps(conversations(2, seed=5)) == json.dumps(conversations(2, seed=5))
