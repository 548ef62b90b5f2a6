"""Small random models of many families: the matrix that every placement and composition is tested on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from nnm_core.model.load import LoadedModel, wrap_model

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MPT = {"vocab_size": 320, "d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 512}
OWN_NAMES = {"gpt2", "mpt"}  # model types that name their sizes otherwise than BASE does
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

# name -> (model type, overrides, position family that must be found)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "rotary"),
    "llama-yarn": ("llama", {"rope_parameters": YARN}, "rotary"),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}, "rotary"),
    "qwen2": ("qwen2", {}, "rotary"),
    "qwen3": ("qwen3", {}, "rotary"),
    "mistral": ("mistral", {"sliding_window": None}, "rotary"),
    "mistral-window": ("mistral", {"sliding_window": 12}, "rotary"),
    "gemma": ("gemma", {}, "rotary"),
    "gemma2": ("gemma2", {"sliding_window": 12, "query_pre_attn_scalar": 16}, "rotary"),
    "gemma3": (
        "gemma3_text",
        {"sliding_window": 12, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
        "rotary",
    ),
    "phi": ("phi", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}, "rotary"),
    "phi3": ("phi3", {}, "rotary"),
    "gpt-neox": ("gpt_neox", {"rotary_pct": 0.25, "num_key_value_heads": 4}, "rotary"),
    "olmo2": ("olmo2", {}, "rotary"),
    "granite": ("granite", {}, "rotary"),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "rotary"),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.25}, "fixed"),
    "cohere": ("cohere", {}, "rotary"),
    "glm4": ("glm4", {"partial_rotary_factor": 0.5}, "rotary"),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, "rotary"),
    "starcoder2": ("starcoder2", {}, "rotary"),
    "qwen3-moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, "rotary"),
    "cohere2": ("cohere2", {"sliding_window": 12}, "rotary"),
    "exaone4": ("exaone4", {"sliding_window": 12}, "rotary"),
    "gpt-oss": ("gpt_oss", {"sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2}, "rotary"),
    "llama4": ("llama4_text", {"num_local_experts": 2, "intermediate_size_mlp": 64}, "fixed"),
    "deepseek-v3": ("deepseek_v3", LATENT, "fixed"),
    "gpt2": ("gpt2", GPT, "fixed"),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}, "fixed"),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 4}, "free"),
    "mpt": ("mpt", MPT, "free"),
}


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]


def make(name: str, **settings: Any) -> PreTrainedModel:
    """A random model of the family `name`, four layers of width 64, seeded; `settings` go into its configuration."""
    model_type, overrides, _ = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **({} if model_type in OWN_NAMES else BASE) | overrides | settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    # Fresh norms and small embeddings make near-uniform logits; wider weights make wrong states visible.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model


@cache
def tiny(name: str) -> PreTrainedModel:
    """The model `make(name)`, made once; do not change it."""
    # A test that asks for it first may run in inference mode; the next one may need ordinary parameters.
    with torch.inference_mode(False):
        return make(name)


@cache
def loaded(name: str) -> LoadedModel:
    """`tiny(name)` as the engine sees it, with a tokenizer of bytes; do not change it."""
    with torch.inference_mode(False):
        return wrap_model(tiny(name), byte_tokenizer(), name=name)


def byte_tokenizer(template: str | None = CHATML, **settings: Any) -> PreTrainedTokenizerFast:
    """One token a byte and five control tokens: 261 in all, which every family of this file has room for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = {"pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **special | {"additional_special_tokens": SPECIAL[3:]} | settings
    )
    tokenizer.chat_template = template
    return tokenizer


def random_ids(length: int, *, seed: int) -> list[int]:
    """`length` token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), 261, (length,), generator=generator).tolist()
