"""Sweeps and batches of prompts: the same answers as the engine's own path, arm by arm."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.core.families import loaded, random_ids
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InjectionSettings, InvalidInputError
from nnm_core.cli.app import app
from nnm_core.evaluation.behind import Prompt, answers_behind
from nnm_core.evaluation.datasets import load_questions
from nnm_core.evaluation.sweep import BARE, BASE, Sweep, additions, places, strengths
from nnm_core.model.attention import intervene
from nnm_core.model.prompt import DEFAULT_SYSTEM
from nnm_core.states.capture import capture, place

LINES = [
    {"id": "one", "context": "The bins are collected on Tuesday.", "question": "When?", "answer": "Tuesday"},
    {"id": "two", "passages": ["The key is red.", "The door is blue."], "question": "Which colour?", "answer": "red"},
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES))
    return path


def test_a_batch_gives_every_row_the_answer_that_it_gets_alone() -> None:
    model = loaded("llama")
    left = place(model, capture(model, [random_ids(6, seed=1)])[0], 0)
    prompts = []
    for index, (memory, read) in enumerate([(20, 5), (3, 9), (31, 1), (0, 12)]):
        states = [left]
        if memory:
            state = capture(model, [random_ids(memory, seed=10 + index)], left)[0]
            states.append(place(model, state, left.length))
        prompts.append(Prompt(tuple(states), tuple(random_ids(read, seed=20 + index))))
    prompts.append(Prompt((), tuple(random_ids(17, seed=5))))
    together = answers_behind(model, prompts, max_tokens=6)
    for row, prompt in enumerate(prompts):
        alone = answers_behind(model, [prompt], max_tokens=6)
        assert alone.token_ids[0] == together.token_ids[row]
        assert float((alone.logits[0] - together.logits[row]).abs().max()) <= 1e-3


def test_rows_that_have_ended_are_let_go_and_the_others_go_on_as_alone() -> None:
    model = replace(loaded("llama"))
    prompts = [Prompt((), tuple(random_ids(length, seed=length))) for length in (4, 17, 9, 12)]
    model.__dict__["eos_token_ids"] = frozenset()
    endless = answers_behind(model, prompts, max_tokens=6).token_ids
    ends = frozenset({endless[0][0], endless[1][1], endless[2][1]})
    model.__dict__["eos_token_ids"] = ends
    cut = [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in endless]
    assert len({0, *cut}) > 2, "the rows must end at different places"
    rows = []

    def watch(attend: Any, module: Any, query: Any, *arguments: Any, **named: Any) -> Any:
        rows.append(query.shape[0])
        return attend(module, query, *arguments, **named)

    with intervene(watch):
        together = answers_behind(model, prompts, max_tokens=6).token_ids
    assert list(together) == [row[:end] for row, end in zip(endless, cut, strict=True)]
    assert rows[0] == 4
    assert rows[-1] <= 2


def test_a_sweep_says_what_the_engine_says(questions: Path) -> None:
    """Arms are the engine's own answers under the same settings, over two memories as well as one."""
    data = load_questions(questions)
    settings = strengths([0.0, 0.4], "attention")
    sweep = Sweep(tiny_reader(), settings, max_tokens=8)
    assert [question.id for question in sweep.run(data)] == ["one", "two"]
    texts = {name: [] for name in sweep.scores}  # type: dict[str, list[str]]
    with NNM.open(tiny_reader(), system=DEFAULT_SYSTEM) as nnm:
        for question in data.questions:
            stored = nnm.add([data.passages[name] for name in question.passages])
            ids = [memory.id for memory in stored]
            for name, injection in ((BASE, InjectionSettings()), ("0", settings[0].injection)):
                assert injection is not None
                answer = nnm.answer(question.text, memories=ids, max_tokens=8, injection=injection, mode="read")
                texts[name].append(answer.text)
    asked = []
    original = sweep._injected

    def listen(*arguments):  # type: ignore[no-untyped-def]  # as the method
        text, likely = original(*arguments)
        asked.append((arguments[1], text))
        return text, likely

    sweep._injected = listen  # type: ignore[method-assign]  # to see the texts
    list(sweep.run(data))
    assert [text for injection, text in asked if injection == InjectionSettings()] == texts[BASE]
    assert [text for injection, text in asked if injection == settings[0].injection] == texts["0"]


def test_a_report_has_every_arm_with_finite_figures(questions: Path) -> None:
    model = tiny_reader()
    settings = [*strengths([0.5, 1.0], "value"), *places(model.layers, "only"), *additions(model.layers, 0.5, "mean")]
    sweep = Sweep(model, settings, max_tokens=4)
    list(sweep.run(load_questions(questions)))
    report = sweep.report()
    assert list(report)[:3] == [BASE, BARE, "0.5"]  # 1 is as read
    assert len(report) == 3 + 2 * model.layers
    assert all(math.isfinite(arm["gold_logprob"].mean) and arm["f1"].count == 2 for arm in report.values())
    assert report[BASE]["gold_minus_base"].mean == 0
    assert report[BARE]["gold_logprob"].mean != report[BASE]["gold_logprob"].mean


@pytest.mark.parametrize(
    ("kind", "first"), [("from", (1, 2, 3)), ("up to", (0,)), ("only", (0,)), ("without", (1, 2, 3))]
)
def test_places(kind: str, first: tuple[int, ...]) -> None:
    settings = places(4, kind)  # type: ignore[arg-type]  # parametrised
    assert settings[0].injection is not None
    assert settings[0].injection.layers == first
    assert len(settings) == (3 if kind in ("from", "up to") else 4)  # all layers are as read


def test_a_question_without_passages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"passages": [], "question": "When?", "answer": "now"}))
    with pytest.raises(InvalidInputError, match="no passages"):
        list(Sweep(tiny_reader(), []).run(load_questions(path)))


def test_the_commands(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nnm_core.model.load.load_model", lambda *_: tiny_reader())
    for arguments in (["alpha", "--values", "0,2"], ["layers"], ["layers", "--route", "residual"]):
        out, plot = tmp_path / "out.json", tmp_path / "out.png"
        given = ["sweep", *arguments, str(questions), "--json", str(out), "--plot", str(plot)]
        assert app(given, standalone_mode=False) in (None, 0)
        report = json.loads(out.read_text())
        assert report["config"]["questions"] == 2
        assert set(report["arms"][BASE]) == {"em", "f1", "gold_logprob", "f1_minus_base", "gold_minus_base"}
        assert plot.stat().st_size > 1000
        assert "as read" in capsys.readouterr().out
    for wrong in (["alpha", "--by", "magic"], ["alpha", "--values", "a"], ["layers", "--kind", "x"]):
        with pytest.raises(InvalidInputError):
            app(["sweep", *wrong, str(questions)], standalone_mode=False)
