"""Attention of few queries over many keys, of which only some places are filled, in kernels of a fixed shape.

Two things keep a GPU busy where the ordinary call does not: query heads that share keys are packed into one long row
of queries (keys are not repeated), and the keys are cut into parts that are attended to at the same time and merged by
their log-sum-exp, as in Flash-Decoding (Dao et al., 2023):
``out = sum_s exp(lse_s - lse) out_s`` with ``lse = log sum_s exp(lse_s)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnm_core.model.attention import Attend

# Thread blocks that fill the largest GPUs.
BLOCKS = 132
# Queries of one block of the kernel.
_QUERIES = 64
_SHORTEST_PART = 128


def visible(positions: Tensor, reach: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores [queries, reach]: 0 for keys up to the query's own position, else far below.

    Not minus infinity: a part in which a query sees nothing must not give NaN; merging gives it the weight 0.
    """
    hidden = max(torch.finfo(dtype).min, -1e30)
    places = torch.arange(reach, device=positions.device)
    unseen = places[None] > positions[:, None]
    return torch.zeros(unseen.shape, dtype=dtype, device=positions.device).masked_fill_(unseen, hidden)


def refuse_other_terms(kwargs: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a model asks for more than scores and a mask."""
    if any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux")):
        raise ValueError("this attention has terms that the fixed pass does not know")


class SplitAttention:
    """An `AttentionIntervention` for one pass of one row with an explicit mask."""

    def __init__(self, mask: Tensor, parts: int | None = None) -> None:
        """Args: mask: as of `visible`, [queries, keys]. parts: how often to cut the keys; chosen by size if None."""
        self._mask = mask
        self._parts = parts
        self._packed: dict[tuple[int, int], Tensor] = {}

    def __call__(
        self,
        attend: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """See `AttentionIntervention`; query [1, heads, queries, head_dim], key and value [1, kv_heads, keys, ...]."""
        refuse_other_terms(kwargs)
        _, heads, queries, dim = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        group = heads // kv_heads
        parts = self._parts or _parts(kv_heads, group * queries, keys)
        rows = query.reshape(1, kv_heads, group * queries, dim).expand(parts, -1, -1, -1)
        out, lse = _attend(rows, _cut(key, parts), _cut(value, parts), self._mask_of(group, parts), kwargs["scaling"])
        merged = out[0] if parts == 1 else _merge(out, lse)
        return merged.reshape(heads, queries, -1).transpose(0, 1)[None].contiguous(), None

    def _mask_of(self, group: int, parts: int) -> Tensor:
        """The mask for packed queries and cut keys, [parts, 1, group x queries, keys of a part]; one for all layers."""
        found = self._packed.get((group, parts))
        if found is None:
            rows = self._mask.repeat(group, 1)
            found = rows.view(len(rows), parts, -1).transpose(0, 1).contiguous()[:, None]
            self._packed[group, parts] = found
        return found


def _parts(kv_heads: int, queries: int, keys: int) -> int:
    """Enough parts to fill the GPU, but none shorter than a few steps of the kernel."""
    parts = 1
    while parts * kv_heads * -(-queries // _QUERIES) < BLOCKS and keys % (2 * parts * _SHORTEST_PART) == 0:
        parts *= 2
    return parts


def _cut(states: Tensor, parts: int) -> Tensor:
    """[1, kv_heads, keys, head_dim] -> [parts, kv_heads, keys of a part, head_dim], a view."""
    cut: Tensor = states[0].unflatten(1, (parts, -1))
    return cut.transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, [parts, kv_heads, queries, head_dim] and [parts, kv_heads, queries]."""
    mask = mask.expand(-1, key.shape[1], -1, -1)
    if query.is_cuda:
        attend = torch.ops.aten._scaled_dot_product_efficient_attention  # the public function hides the log-sum-exp
        found: tuple[Tensor, ...] = attend(query, key, value, mask, True, scale=scale)
        out, lse = found[:2]
        return out, lse[..., : query.shape[2]]
    scores = query.float() @ key.float().transpose(-1, -2) * scale + mask
    lse = scores.logsumexp(-1)
    out = (scores - lse[..., None]).exp() @ value.float()
    return out.to(query.dtype), lse


def _merge(out: Tensor, lse: Tensor) -> Tensor:
    # Weights and parts in the compute type: as exact as the parts are, and half the kernels.
    weights = lse.softmax(0).to(out.dtype)
    merged: Tensor = (weights[..., None] * out).sum(0)
    return merged
