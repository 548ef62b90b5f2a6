"""The self-test passes on every family, catches what is broken, and runs once."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.families import FAMILIES, byte_tokenizer, loaded, make

from nnm_core.injection import selftest
from nnm_core.injection.selftest import SelfTest, run_self_test, self_test
from nnm_core.model.load import LoadedModel, wrap_model
from nnm_core.states.codecs import NativeCodec
from nnm_core.states.state import PlacedState


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name: str) -> None:
    result = run_self_test(loaded(name))
    assert result.passed, result
    assert result.refusal == ""
    assert result.injected <= 1e-4
    assert result.reloaded == result.injected, "the native codec keeps every bit"
    assert (result.moved is None) == (loaded(name).positions.family == "fixed")


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_in_bfloat16(name: str) -> None:
    assert run_self_test(wrap_model(make(name).to(torch.bfloat16), byte_tokenizer(), name=name)).passed


def test_the_reader_model(mini: LoadedModel) -> None:
    result = run_self_test(mini)
    assert result.passed
    assert result.same_token


def shifted(place: Any) -> Any:
    return lambda model, state, start: place(model, state, start + 1)


def scaled(place: Any) -> Any:
    def wrong(model: LoadedModel, state: Any, start: int) -> PlacedState:
        good = place(model, state, start)
        return PlacedState(good.name, good.length, tuple((key, value * 1.1) for key, value in good.layers))

    return wrong


def nothing(place: Any) -> Any:
    def wrong(model: LoadedModel, state: Any, start: int) -> PlacedState:
        good = place(model, state, start)
        return PlacedState(good.name, good.length, tuple((key * float("nan"), value) for key, value in good.layers))

    return wrong


@pytest.mark.parametrize("damage", [shifted, scaled, nothing])
def test_states_that_are_put_back_wrong_fail(damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "place", damage(selftest.place))
    result = run_self_test(loaded("llama"))
    assert not result.passed
    assert "failed the self-test" in result.refusal
    assert "read as text" in result.refusal


def test_a_codec_that_loses_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(self: NativeCodec, state: Any) -> Any:
        return {name: t if name == "token_ids" else t.half().float() * 1.05 for name, t in good(self, state).items()}

    good = NativeCodec.encode
    monkeypatch.setattr(NativeCodec, "encode", lossy)
    result = run_self_test(loaded("llama"))
    assert result.injected <= 1e-4
    assert not result.passed


def test_a_rotation_of_another_model_fails() -> None:
    """As if a library update had changed the arithmetic: everything but the move still agrees at its own place."""
    model = loaded("llama")
    wrong = tuple(
        dataclasses.replace(rotary, apply=lambda q, k, cos, sin: (q, k)) if rotary is not None else None
        for rotary in model.positions.rotary
    )
    broken = dataclasses.replace(model, positions=dataclasses.replace(model.positions, rotary=wrong))
    assert not run_self_test(broken).passed


@pytest.mark.parametrize("place", ["injected", "reloaded", "moved"])
def test_not_a_number_is_a_failure(place: str) -> None:
    good: dict[str, Any] = {"injected": 0.0, "reloaded": 0.0, "moved": 0.0, "same_token": True, "tolerance": 1e-3}
    assert SelfTest(**good).passed
    assert not SelfTest(**good | {place: float("nan")}).passed
    assert not SelfTest(**good | {place: 1.0}).passed


def test_another_token_is_a_failure_in_full_precision_only() -> None:
    assert not SelfTest(0.0, 0.0, None, same_token=False, tolerance=1e-3).passed
    assert SelfTest(0.0, 0.0, None, same_token=False, tolerance=4e-1).passed


def test_it_runs_once_per_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = run_self_test
    monkeypatch.setattr(selftest, "run_self_test", lambda model: (calls.append(model.name), run(model))[1])
    first = self_test(loaded("llama"), folder=tmp_path)
    assert self_test(loaded("llama"), folder=tmp_path) == first
    assert calls == ["llama"]
    self_test(loaded("qwen2"), folder=tmp_path)
    self_test(dataclasses.replace(loaded("llama"), fingerprint="other"), folder=tmp_path)
    assert calls == ["llama", "qwen2", "llama"]
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"injected": 0}', '{"unheard": 1}', "\udcff"])
def test_a_damaged_outcome_is_found_again(content: str, tmp_path: Path) -> None:
    good = self_test(loaded("llama"), folder=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert self_test(loaded("llama"), folder=tmp_path) == good
    assert json.loads(path.read_text())["same_token"] is True


def test_a_folder_that_cannot_be_written_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert self_test(loaded("llama"), folder=tmp_path / "file" / "selftest").passed


def test_a_failure_is_said_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selftest, "place", shifted(selftest.place))
    with caplog.at_level(logging.WARNING):
        assert not self_test(loaded("llama"), folder=tmp_path).passed
    assert "failed the self-test" in caplog.text
    monkeypatch.undo()
    assert not self_test(loaded("llama"), folder=tmp_path).passed
