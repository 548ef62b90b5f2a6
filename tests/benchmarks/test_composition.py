"""The composition benchmark says what the engine says, and counts it right."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.test_programs import ROOT, reader  # noqa: F401  # a fixture
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.evaluation.datasets import load_questions
from nnm_core.injection.compose import names
from nnm_core.injection.prefill import forward, load
from nnm_core.model.prompt import PromptFormat
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place

PROGRAM = ROOT / "benchmarks" / "composition.py"
THINGS = {"ash": "S", "box": "M", "can": "T", "dog": "W", "egg": "T", "fir": "F"}
TEXTS = [f"The {thing} goes on {day}." for thing, day in THINGS.items()]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("composition", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["composition"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    paragraphs = []
    for number, text in enumerate(TEXTS):
        answer = {"text": text[-2], "answer_start": len(text) - 2}
        asked = {"id": str(number), "question": f"When {text[4:7]}?", "answers": [answer]}
        paragraphs.append({"context": text, "qas": [asked]})
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "Bins", "paragraphs": paragraphs}]}))
    return path


def test_answers_on_the_board_are_those_of_the_engine(program: ModuleType, squad: Path) -> None:
    prompts = list(program.draw(load_questions(squad), 3, 3, two=False, seed=0))
    with NNM.open(tiny_reader(), system=None) as nnm:
        nnm.add([m.text for p in prompts for m in p.memories], ids=[m.id for p in prompts for m in p.memories])
        bench = program.Bench(nnm.model, names(), 0.3, 5, system=None)
        found = bench.run(prompts)
        for name in ("read", *names()):
            how = {"mode": "read"} if name == "read" else {"policy": "fast"}
            assert all(kl == 0 if name == "read" else kl > 0 for kl in found[name].kl)
            for prompt, said, share in zip(prompts, found[name].answers, found[name].shares, strict=True):
                chosen = next((c for c in bench.composers if c.name == name), None)
                ids = [memory.id for memory in prompt.memories]
                answer = nnm.answer(prompt.question, memories=ids, max_tokens=5, composer=chosen, **how)
                assert said == answer.text.strip()
                tokens = sum(part.tokens for part in answer.receipt.parts)
                assert share == pytest.approx(answer.receipt.tokens_recomputed / tokens)
        assert {"bare", "random"} <= found.keys()
        for prompt, said in zip(prompts, found["own sinks"].answers, strict=True):
            assert said == own_sinks(nnm, prompt, 5)


def test_fused_states_on_the_board_are_those_of_the_engine(program: ModuleType, squad: Path) -> None:
    data = load_questions(squad)
    prompts = list(program.draw(data, 3, 3, two=False, seed=0))
    with NNM.open(tiny_reader(), system=None) as nnm:
        nnm.add(list(data.passages.values()), ids=list(data.passages))
        nnm.fuse(neighbours=2)
        bench = program.Bench(nnm.model, [], 0.3, 5, system=None)
        bench.neighbours = program.nearest(nnm.model, data.passages, 2)
        found = bench.run(prompts)
        for arm, composer in ((program.FUSED, "concatenate"), (program.FUSED_DEFAULT, bench.fused_composer)):
            for prompt, said in zip(prompts, found[arm].answers, strict=True):
                ids = [memory.id for memory in prompt.memories]
                how = {"policy": "fast", "composer": composer, "fused": True}
                answer = nnm.answer(prompt.question, memories=ids, max_tokens=5, **how)
                assert [part.fused for part in answer.receipt.parts] == [False, True, True]
                assert said == answer.text.strip()
        assert found[program.FUSED].kl != found["concatenate"].kl
    assert bench.seconds["fused"] > 0


def own_sinks(nnm: NNM, prompt: Any, tokens: int) -> str:
    """The answer behind states that were each read without anything before them, by hand."""
    left, *memories, question = PromptFormat(nnm.model.tokenizer).segments(prompt.messages(prompt.memories, None))
    cache = PlacedCache(nnm.model.layers)
    load(cache, place(nnm.model, capture(nnm.model, [left.ids])[0], 0))
    for segment in memories:
        load(cache, place(nnm.model, capture(nnm.model, [segment.ids])[0], cache.length))
    said = [int(forward(nnm.model, cache, list(question.ids)).argmax())]
    while len(said) < tokens and said[-1] not in nnm.model.eos_token_ids:
        said.append(int(forward(nnm.model, cache, said[-1:]).argmax()))
    said = said[:-1] if said[-1] in nnm.model.eos_token_ids else said
    return str(nnm.model.tokenizer.decode(said, skip_special_tokens=True)).strip()


def test_prompts_hold_what_is_needed_and_not_always_first(program: ModuleType, squad: Path) -> None:
    data = load_questions(squad)
    prompts = list(program.draw(data, 6, 3, two=True, seed=1))
    firsts = []
    for prompt in prompts:
        asked = next(question for question in data.questions if question.text == prompt.question)
        ids = [memory.id for memory in prompt.memories]
        assert len(set(ids)) == 3
        assert {asked.passages[0], prompt.earlier.passages[0]} <= set(ids)
        assert asked.passages[0] not in {memory.id for memory in prompt.strangers}
        assert asked.passages[0] != prompt.earlier.passages[0]
        firsts.append(ids[0] == asked.passages[0])
    assert len(prompts) == len({prompt.question for prompt in prompts}) == 6
    assert not all(firsts)


def test_recovery_is_the_share_of_the_way(program: ModuleType) -> None:
    naive, read = np.array([0.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])
    assert program.recovery(np.array([1.0, 0.0, 1.0, 0.0]), naive, read)["mean"] == pytest.approx(0.5)
    assert program.recovery(read, naive, read)["low"] == pytest.approx(1.0)
    assert program.recovery(naive, read, read)["mean"] is None, "there is no way to go"


def test_the_program_writes_arms_config_and_plot(
    reader: Path,  # noqa: F811
    squad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, str(PROGRAM), "--model", str(reader), "--device", "cpu", "--data", str(squad.parent)]
    command += ["--memories", "2", "--questions", "3", "--max-tokens", "3", "--repeats", "1"]
    command += ["--neighbours", "1", "--composers", "guided-offset", "parallel"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    arms = {name.split(",")[0] for name in report["arms"]}
    own = {"read", "bare", "random", "own sinks", "concatenate", "fused", "fused + guided-offset"}
    assert arms == own | {"guided-offset", "parallel"}
    assert report["config"]["ingest_seconds"]["fused"] > 0
    row = report["arms"]["guided-offset, 2 memories, one needed"]
    assert {"em", "f1", "kl", "recovery_em", "share_recomputed", "read_over_this", "f1_minus_read"} <= row.keys()
    assert row["share_recomputed"] <= 0.15
    assert row["f1"]["count"] == report["config"]["questions"] == 3
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert report["config"]["command"].endswith("--composers guided-offset parallel")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    about, table = importlib.import_module("results_tables").composition(report)
    assert about.startswith("3 questions (dev-v1.1.json")
    assert len(table.splitlines()) == 2 + len(report["arms"])
    assert f"| 2 | one | guided-offset | {100 * row['em']['mean']:.1f} |" in table


def test_codecs_have_a_table_too(reader: Path, squad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    command = [sys.executable, str(ROOT / "benchmarks/codecs.py"), "--model", str(reader), "--device", "cpu"]
    command += ["--data", str(squad), "--codecs", "native", "int8", "--tokens", "40", "--repeats", "1"]
    done = subprocess.run([*command, "--json", str(tmp_path / "r.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    _, table = importlib.import_module("results_tables").codecs(report)
    cells = {line.split("|")[1].strip(): line.split("|") for line in table.splitlines()}
    assert float(cells["native"][7].replace(",", "")) > 2 * float(cells["int8"][7].replace(",", "")) > 0
    assert cells["native"][8].strip() == "0.0000 / 0.0000" != cells["int8"][8].strip()
    assert {"read", "bare", "random"} < cells.keys()


def test_codecs_asks_every_question_once_in_a_random_order(squad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("codecs_benchmark", ROOT / "benchmarks" / "codecs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "codecs_benchmark", module)
    spec.loader.exec_module(module)
    asked = list(load_questions(squad).questions)
    batches = module.batches(asked, 2, seed=0)
    assert sorted(q.id for batch in batches for q in batch) == sorted(q.id for q in asked)
    assert [batch[0].id for batch in batches] != [q.id for q in asked[::2]]
    assert module.batches(asked, 2, seed=0) == batches


def test_codecs_says_what_was_answered_without_times_and_in_little_time(
    reader: Path,  # noqa: F811
    squad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/codecs.py"), "--model", str(reader), "--device", "cpu"]
    command += ["--data", str(squad), "--codecs", "native", "--batch", "4", "--repeats", "0", "--seconds", "1e-9"]
    done = subprocess.run([*command, "--json", str(tmp_path / "r.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["config"]["questions"] in (2, 4)  # the first batch is always asked
    assert report["arms"]["native"]["same"] == 100.0
    assert all(row["seconds"] == {} for row in report["arms"].values())
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert "native" in importlib.import_module("results_tables").codecs(report)[1]
