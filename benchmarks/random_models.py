"""Models of a given shape with random weights: times do not depend on what they say; no download, no tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from nnm_core.model import attention
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import measure_positions

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 320,
    },
}  # fmt: skip
CONTEXT = 65536


class NoTokenizer:
    """Stands where a tokenizer would; these benchmarks have token ids."""

    eos_token_id = None


def random_model(shape: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """A model of that shape made on the device, ready for the engine."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    settings = Qwen2Config(**SHAPES[shape], max_position_embeddings=CONTEXT, rope_parameters=rope)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with device:
            hf = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    hf = hf.to(device).eval().requires_grad_(False)
    intervenes = attention.install(hf, "sdpa")
    no_tokenizer: Any = NoTokenizer()
    positions = measure_positions(hf, shape)
    return LoadedModel(shape, hf, no_tokenizer, device, dtype, CONTEXT, intervenes, positions, shape, shape)
