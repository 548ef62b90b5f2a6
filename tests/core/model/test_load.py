"""What loads, what is refused, and with which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.families import BASE, byte_tokenizer, make
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils import logging as transformers_logging

from nnm_core.errors import InvalidInputError, ModelError, ModelNotFoundError, NNMError, UnsupportedModelError
from nnm_core.model.load import (
    LoadedModel,
    ModelSettings,
    choose_device,
    choose_dtype,
    load_model,
    refuse_unfit,
    wrap_model,
)

NARROW = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
# model type -> (configuration, what the message must name)
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "t5": (
        {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "encoder-decoder",
    ),
    "bart": ({"vocab_size": 320, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "encoder-decoder"),
    "mamba": ({**NARROW, "state_size": 8}, "linear_attention"),
    "mamba2": ({**NARROW, "num_heads": 4, "head_dim": 16, "n_groups": 1}, "linear_attention"),
    "falcon_mamba": ({**NARROW, "state_size": 8}, "linear_attention"),
    "rwkv": (NARROW, "no keys and values"),
    "xlstm": ({**NARROW, "num_heads": 4}, "does not run with an ordinary cache|other ones than keys"),
    "jamba": ({**BASE, "num_experts": 2, "mamba_d_state": 8}, "linear_attention"),
    "bamba": ({**BASE, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32}, "linear_attention"),
    "qwen3_next": (
        {**BASE, "num_experts": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 2},
        "linear_attention",
    ),
    "lfm2": ({**BASE, "layer_types": ["conv", "full_attention", "conv", "full_attention"]}, "conv"),
    "falcon_h1": ({**BASE, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}, "hybrid"),
    "zamba2": ({}, "hybrid"),
    "recurrent_gemma": ({**BASE, "lru_width": 64}, "linear_attention"),
    "granitemoehybrid": ({**BASE, "layer_types": ["mamba", "attention"] * 2}, "linear_attention"),
    "nemotron_h": (BASE, "linear_attention"),
    "gemma3n_text": ({**BASE, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4}, "shares states"),
    "bert": (BASE, "not causal"),
    "modernbert": (
        {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "no causal",
    ),
    "openai-gpt": (
        {"vocab_size": 320, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
        "no keys and values",
    ),
}
# Those that are refused before any weight is made: built from the configuration alone, since the real ones are large.
BY_CONFIGURATION = {"zamba2", "modernbert", "gemma3n_text", "nemotron_h", "jamba", "qwen3_next", "bamba"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def saved(folder: Path, name: str = "llama", **settings: Any) -> str:
    make(name, **settings).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("model_type", UNFIT)
def test_unfit_architectures_are_refused_by_name(model_type: str, tmp_path: Path) -> None:
    settings, reason = UNFIT[model_type]
    config = AutoConfig.for_model(model_type, **settings)
    if model_type not in BY_CONFIGURATION:
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        kind.from_config(config).save_pretrained(tmp_path)
    else:
        config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        load_model(str(tmp_path))
    assert caught.value.hint
    assert str(tmp_path) in str(caught.value)


def test_a_hybrid_architecture_without_hybrid_layers_is_an_ordinary_decoder() -> None:
    """Granite 4 comes in both kinds under one model type."""
    refuse_unfit(AutoConfig.for_model("granitemoehybrid", **BASE, layer_types=["attention"] * 4), "granite")


@pytest.mark.parametrize(
    "name", ["no/such-model", "no-such-model", "./nowhere", "/nowhere/at/all", "", "two words", "a/b/c", "x" * 300]
)
def test_nothing_of_that_name(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        load_model(name)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelNotFoundError):
        load_model(str(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        load_model(str(tmp_path))


def test_cut_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(tmp_path))


def test_weights_of_another_shape(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_model(str(tmp_path))
    assert caught.value.hint


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    """transformers fills missing weights with random numbers and only prints a table about it."""
    make("llama").model.save_pretrained(tmp_path)  # the body without its head
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks weights: lm_head\.weight"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"model_type": "unheard-of"}', "\x00"])
def test_a_damaged_configuration(damage: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert caught.value.hint


def test_without_a_tokenizer(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert caught.value.hint


def test_code_of_the_model_is_not_run_unless_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    saved(folder)
    trace = tmp_path / "trace"
    (folder / "own_code.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-code'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own-code", "auto_map": own}))
    with pytest.raises(ModelError, match=r"code of its own.*trust_remote_code=True"):
        load_model(str(folder))
    assert not trace.exists()


def test_loading_says_nothing_and_leaves_the_settings_alone(tmp_path: Path) -> None:
    """No bars, no warnings on either stream, in a fresh process; transformers' own settings are as they were."""
    program = (
        "import sys\n"
        "from transformers.utils import logging\n"
        "before = (logging.is_progress_bar_enabled(), logging.get_verbosity())\n"
        "from nnm_core.model.load import load_model\n"
        "load_model(sys.argv[1])\n"
        "assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before == (True, 30), before\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program, saved(tmp_path)],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bars_come_back_after_a_failure(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    before = transformers_logging.is_progress_bar_enabled()
    with pytest.raises(ModelError):
        load_model(str(tmp_path))
    assert transformers_logging.is_progress_bar_enabled() == before


def test_what_is_known_of_a_loaded_model(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, eos_token_id=[2, 4]), ModelSettings(device="cpu"))
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.context_limit == 512
    assert model.layers == 4
    assert model.intervenes
    assert model.eos_token_ids == {2, 4}
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_the_same_weights_in_other_types(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    half = load_model(folder, ModelSettings(device="cpu", dtype="bfloat16"))
    eager = load_model(folder, ModelSettings(device="cpu", attention="eager"))
    assert half.dtype == torch.bfloat16
    assert eager.hf.config._attn_implementation == "nnm_eager"


def test_an_attention_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(saved(tmp_path), ModelSettings(device="cpu", attention="nonsense"))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_models_that_are_in_memory_are_checked_too(name: str) -> None:
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **BASE))
    if name == "llama":
        assert isinstance(wrap_model(hf, byte_tokenizer(), name=name), LoadedModel)
    else:
        with pytest.raises(UnsupportedModelError, match="bert is not causal"):
            wrap_model(hf, byte_tokenizer(), name=name)


@pytest.mark.parametrize("wanted", ["gpu", "cpu:x", "toaster", "", "cuda:99"])
def test_devices_that_are_not_there(wanted: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        choose_device(wanted)
    assert caught.value.hint


@pytest.mark.parametrize("wanted", ["int8", "float", "half-ish", "nn", "__name__", ""])
def test_types_that_are_none(wanted: str) -> None:
    if wanted == "float":
        assert choose_dtype(wanted, torch.device("cpu")) == torch.float32
        return
    with pytest.raises(InvalidInputError, match="no floating dtype"):
        choose_dtype(wanted, torch.device("cpu"))


def test_defaults_of_the_machine() -> None:
    assert choose_dtype(None, torch.device("cpu")) == torch.float32
    assert choose_dtype(None, torch.device("mps")) == torch.float16
    assert choose_device(None).type in {"cpu", "cuda", "mps"}


def test_the_bundled_model_by_name(mini: LoadedModel) -> None:
    assert mini.positions.family == "rotary"
    assert mini.context_limit >= 2048


def test_the_bundled_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NNMError, match="pip install nnm-mini"):
        load_model("nnm-mini")
