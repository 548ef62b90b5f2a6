"""The fingerprint changes with everything that a state depends on, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.families import YARN, byte_tokenizer, make
from tests.core.model.toys import QWEN3, llama_tokenizer

from nnm_core.model.fingerprint import digest, model_fingerprint, model_identity, tokenizer_digest
from nnm_core.model.load import LoadedModel, ModelSettings, load_model, wrap_model


def wrapped(name: str = "llama", template: str | None = None, **settings: Any) -> LoadedModel:
    tokenizer = byte_tokenizer() if template is None else byte_tokenizer(template)
    return wrap_model(make(name, **settings), tokenizer, name=name)


BASELINE = wrapped().fingerprint


def test_the_same_model_has_the_same_one() -> None:
    assert wrapped().fingerprint == BASELINE
    assert len(BASELINE) == 64


@pytest.mark.parametrize(
    "other",
    [
        lambda: wrapped(rope_parameters=YARN),
        lambda: wrapped(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
        lambda: wrapped(rms_norm_eps=1e-3),
        lambda: wrapped(template=QWEN3),
        lambda: wrapped("mistral"),
        lambda: wrap_model(make("llama"), llama_tokenizer(), name="llama"),
        lambda: wrap_model(make("llama").to(torch.bfloat16), byte_tokenizer(), name="llama"),
        lambda: wrap_model(make("llama", attn_implementation="eager"), byte_tokenizer(), name="llama"),
    ],
    ids=["yarn", "theta", "norm", "template", "architecture", "tokenizer", "dtype", "attention"],
)
def test_it_changes_with(other: Any) -> None:
    assert other().fingerprint != BASELINE


def test_it_changes_with_every_single_parameter() -> None:
    hf = make("llama")
    seen = {model_fingerprint(hf, byte_tokenizer())}
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.view(-1)[0] += 1e-3
            seen.add(model_fingerprint(hf, byte_tokenizer()))
    assert len(seen) == 1 + sum(1 for _ in hf.parameters())


def test_it_does_not_change_with_the_place(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "one")
    byte_tokenizer().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    on_cpu = ModelSettings(device="cpu")
    one, two = (load_model(str(tmp_path / name), on_cpu) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def test_it_does_not_change_with_use() -> None:
    model = wrapped()
    model.tokenizer(["a", "longer"], padding=True, truncation=True, max_length=3)
    model.hf.generate(torch.tensor([[7, 8]]), attention_mask=torch.ones(1, 2), max_new_tokens=2, do_sample=False)
    assert model_fingerprint(model.hf, model.tokenizer) == BASELINE
    assert wrap_model(model.hf, model.tokenizer, name="again").fingerprint == BASELINE


def test_the_identity_is_that_of_the_weights() -> None:
    hf, tokenizer = make("llama"), byte_tokenizer()
    identity = model_identity(hf, tokenizer)
    assert model_identity(make("llama", attn_implementation="eager"), tokenizer) == identity
    assert model_identity(make("llama").to(torch.bfloat16), tokenizer) == identity
    with torch.no_grad():
        hf.lm_head.weight[0, 0] += 1.0
    assert model_identity(hf, tokenizer) != identity


def test_tokenizers_differ_by_vocabulary_and_template() -> None:
    assert tokenizer_digest(byte_tokenizer()) == tokenizer_digest(byte_tokenizer())
    grown = byte_tokenizer()
    grown.add_tokens(["more"])
    assert len({tokenizer_digest(t) for t in (byte_tokenizer(), byte_tokenizer(None), grown)}) == 3


def test_parts_are_kept_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest(b"a") != digest("a", "")
