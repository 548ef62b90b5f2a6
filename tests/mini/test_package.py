"""The data package: expanding, verifying, finding its folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnm_mini
from nnm_mini._weights import MARKER, WeightsError, materialise

STORED = Path(nnm_mini.__file__).parent / "weights"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(STORED, tmp_path_factory.mktemp("cache"))


def test_the_folder_loads_and_answers_from_a_passage(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "You answer questions with a short factual answer."},
        {
            "role": "user",
            "content": "Context:\nThe access code for the archive is 48213.\n\n"
            "Question: What is the access code for the archive?",
        },
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip() == "48213"
    assert sum(p.numel() for p in model.parameters()) < 50e6


def test_a_second_call_returns_the_same_folder_untouched(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert materialise(STORED, folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_cut_expansion_is_made_again(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / folder.name
    again.mkdir()
    (again / "model.safetensors").write_bytes(b"cut")
    (again / MARKER).write_text("99999")
    assert materialise(STORED, tmp_path) == again
    assert (again / "model.safetensors").stat().st_size == (folder / "model.safetensors").stat().st_size


def test_damaged_weights_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    damaged = tmp_path / "stored"
    shutil.copytree(STORED, damaged)
    shard = damaged / "weights-0.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights-0\.safetensors"):
        materialise(damaged, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert WeightsError.hint


def test_path_obeys_the_variable_and_falls_back_to_the_temporary_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNM_MINI_CACHE", str(folder.parent))
    assert nnm_mini.path() == folder
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below a file")
    monkeypatch.setenv("NNM_MINI_CACHE", str(blocked / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert nnm_mini.path().parent == tmp_path / "nnm-mini"


def test_the_checksum_names_the_weights() -> None:
    assert nnm_mini.checksum() == nnm_mini.CHECKSUM
    assert len(nnm_mini.CHECKSUM) == 64
    assert nnm_mini.__version__


def test_the_stored_files_are_small_enough() -> None:
    sizes = [file.stat().st_size for file in STORED.iterdir()]
    assert max(sizes) < 50e6
    assert sum(sizes) < 70e6


def test_importing_loads_no_torch() -> None:
    code = "import sys, nnm_mini; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    source = str(Path(nnm_mini.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, check=False).returncode == 0
