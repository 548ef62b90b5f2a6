"""The training view of the model: a Qwen3-shaped decoder, written out, with masks for packed and independent passages.

Weights are fp32, activations bf16 on a GPU. `transformers` names of the weights: `to_transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from recipe.config import Shape

_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "input_norm": "input_layernorm",
    "middle_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}


class Block(nn.Module):
    """The weights of one layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide, narrow, hidden = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
        spread = 0.02 * math.sqrt(768 / hidden)
        small = spread / math.sqrt(2 * shape.layers)

        def matrix(rows: int, columns: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) * std)

        self.query, self.output = matrix(wide, hidden, spread), matrix(hidden, wide, small)
        self.key, self.value = matrix(narrow, hidden, spread), matrix(narrow, hidden, spread)
        self.gate, self.up = matrix(shape.feed_forward, hidden, spread), matrix(shape.feed_forward, hidden, spread)
        self.down = matrix(hidden, shape.feed_forward, small)
        self.input_norm, self.middle_norm = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.query_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.key_norm = nn.Parameter(torch.ones(shape.head_dim))

    def weights(self) -> tuple[Tensor, ...]:
        """In the order in which `block` takes them."""
        return tuple(getattr(self, name) for name in _NAMES)


class Reader(nn.Module):
    """Embedding (tied with the output), blocks and final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.hidden) * 0.02)
        self.final_norm = nn.Parameter(torch.ones(shape.hidden))
        # A ModuleList does not say what is in it.
        self.blocks = cast("Sequence[Block]", nn.ModuleList([Block(shape) for _ in range(shape.layers)]))


def rms(x: Tensor, gain: Tensor) -> Tensor:
    """RMS norm in fp32."""
    return F.rms_norm(x.float(), (x.shape[-1],), gain, 1e-6)


def rotary(positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [batch, tokens, 1, head_dim] in fp32, of positions [batch, tokens]."""
    exponents = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=torch.float32) / shape.head_dim
    angles = positions[..., None].float() / shape.theta**exponents
    angles = torch.cat([angles, angles], -1)[:, :, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding, the half-split form of transformers."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def qkv(x: Tensor, weights: tuple[Tensor, ...], cosine: Tensor, sine: Tensor, head_dim: int) -> tuple[Tensor, ...]:
    """Rotated queries and keys, and values, each [batch, heads, tokens, head_dim] in the dtype of x."""
    query, key, value = weights[:3]
    norm, query_norm, key_norm = weights[7], weights[9], weights[10]
    h = rms(x, norm).to(x.dtype)
    split = [query.shape[0] // head_dim, key.shape[0] // head_dim, value.shape[0] // head_dim]
    merged = F.linear(h, torch.cat([query, key, value]).to(x.dtype)).unflatten(-1, (-1, head_dim))
    q, k, v = merged.split(split, 2)
    q = rotate(rms(q, query_norm), cosine, sine).to(x.dtype)
    k = rotate(rms(k, key_norm), cosine, sine).to(x.dtype)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def rest_of_block(x: Tensor, attended: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Output projection, residual and the gated feed-forward part."""
    output, gate, up, down = weights[3:7]
    x = x + F.linear(attended.transpose(1, 2).flatten(2), output.to(x.dtype))
    h = rms(x, weights[8]).to(x.dtype)
    gated, raised = F.linear(h, torch.cat([gate, up]).to(x.dtype)).chunk(2, -1)
    return x + F.linear(F.silu(gated) * raised, down.to(x.dtype))


def block(x: Tensor, cosine: Tensor, sine: Tensor, mask: Any, head_dim: int, *weights: Tensor) -> Tensor:
    """One layer. `mask`: a BlockMask (flex attention), a bool tensor, or None for plain causal attention."""
    q, k, v = qkv(x, weights, cosine, sine, head_dim)
    if isinstance(mask, BlockMask):
        attended = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    else:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return rest_of_block(x, attended, weights)


def head_loss(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of weight x cross-entropy over all tokens, and the detached cross-entropy of each token."""
    logits = F.linear(rms(x, norm).to(x.dtype), embedding.to(x.dtype)).float()
    entropy = logits.logsumexp(-1) - logits.gather(-1, targets[..., None]).squeeze(-1)
    return (entropy * weights).sum(), entropy.detach()


def positions_of(example: Tensor) -> Tensor:
    """Positions [batch, tokens] that begin at 0 where a new example (or document) begins."""
    index = torch.arange(example.shape[1], device=example.device).expand_as(example)
    starts = torch.ones_like(example, dtype=torch.bool)
    starts[:, 1:] = example[:, 1:] != example[:, :-1]
    return index - torch.where(starts, index, 0).cummax(1).values


def may_see(example_q: Tensor, example_k: Tensor, group_q: Tensor, group_k: Tensor) -> Tensor:
    """Whether a query sees an earlier key: same example, and the shared part, or itself not in a passage, or the
    same passage.

    See `layout` for the groups. Question and separators (group <= 0) see everything before them; a passage sees the
    shared prefix (group 0) and itself.
    """
    return (example_q == example_k) & ((group_k == 0) | (group_q <= 0) | (group_q == group_k))


def dense_mask(example: Tensor, group: Tensor) -> Tensor:
    """The mask as a bool tensor [batch, 1, tokens, tokens]."""
    seen = may_see(example[:, :, None], example[:, None], group[:, :, None], group[:, None])
    return seen.tril()[:, None]


def flex_mask(example: Tensor, group: Tensor) -> BlockMask:
    """The same mask for flex attention (CUDA)."""

    def allowed(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & may_see(example[b, q], example[b, k], group[b, q], group[b, k])

    batch, tokens = example.shape
    return create_block_mask(allowed, batch, None, tokens, tokens, device=str(example.device), _compile=True)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of `transformers`' Qwen3ForCausalLM."""
    out = {"model.embed_tokens.weight": state["embedding"], "model.norm.weight": state["final_norm"]}
    for name, value in state.items():
        if name.startswith("blocks."):
            _, layer, part = name.split(".")
            out[f"model.layers.{layer}.{_NAMES[part]}.weight"] = value
    return out


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_transformers`."""
    names = {value: name for name, value in _NAMES.items()}
    out = {"embedding": weights["model.embed_tokens.weight"], "final_norm": weights["model.norm.weight"]}
    for name, value in weights.items():
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            out[f"blocks.{layer}.{names[part]}"] = value
    return out


def transformers_config(shape: Shape) -> dict[str, Any]:
    """The config.json of the model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "rms_norm_eps": shape.epsilon,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
        "initializer_range": 0.02,
        "use_cache": True,
    }
