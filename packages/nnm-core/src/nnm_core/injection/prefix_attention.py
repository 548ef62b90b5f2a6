"""Attention of a question over a long prefix without a mask, for passes of a fixed shape on a GPU.

The question sees all of the prefix, so that only its own tokens among each other need to be masked. The prefix is cut
into parts of the same size by a table that lies on the GPU: where it ends may change from pass to pass, and nothing
behind it is read. All parts are attended to in one call of FlashAttention for sequences of different lengths (Dao,
2023, arXiv 2307.08691), query heads that share keys packed into one long row of queries; the question's own tokens in
another, causal one; and all are merged by their log-sum-exp, as in `split_attention`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nnm_core.injection.split_attention import BLOCKS, refuse_other_terms
from nnm_core.model.attention import Attend

# Queries of one block of the kernel.
_QUERIES = 128
# A shorter prefix takes as long with a mask, in fewer kernels.
SHORTEST_PREFIX = 3072


class PrefixAttention:
    """An `AttentionIntervention` for one pass of one row, whose tokens stand behind a prefix of any length."""

    def __init__(self, positions: Tensor, reach: int, parts: int | None = None) -> None:
        """Args:
        positions: where the pass's tokens stand, [queries]; the first one is the length of the prefix.
        reach: places that the keys have; the prefix must be at least as long as there are parts.
        parts: how often to cut the prefix; enough to fill the GPU if None.
        """
        self._start = positions[:1]
        self._reach = reach
        self._parts = parts
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

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
        """See `AttentionIntervention`; query [1, heads, queries, head_dim], key and value [1, kv_heads, reach, ...]."""
        refuse_other_terms(kwargs)
        _, heads, queries, dim = query.shape
        kv_heads, scale = key.shape[1], kwargs["scaling"]
        group = heads // kv_heads
        rows = group * queries
        parts = self._parts or max(1, round(BLOCKS / (kv_heads * -(-rows // _QUERIES))))
        packed, prefix, single, own = self._tables_of(rows, queries, parts)
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        grouped = query[0].unflatten(0, (kv_heads, group)).permute(1, 2, 0, 3)  # [group, queries, kv_heads, head_dim]
        repeated = grouped.expand(parts, -1, -1, -1, -1).reshape(-1, kv_heads, dim)
        longest = -(-self._reach // parts)
        far, far_lse = varlen(repeated, keys, values, packed, prefix, rows, longest, scale, causal=False)
        alone = query[0].transpose(0, 1)
        near, near_lse = varlen(alone, keys, values, single, own, queries, queries, scale, causal=True)
        lse = torch.cat([far_lse.view(kv_heads, parts, rows), near_lse.view(kv_heads, 1, rows)], dim=1)
        weights = lse.softmax(1).to(query.dtype)
        of_parts = (weights[:, :-1].permute(1, 2, 0)[..., None] * far.view(parts, rows, kv_heads, dim)).sum(0)
        seen = of_parts.view(group, queries, kv_heads, dim).permute(1, 2, 0, 3)
        of_own = weights[:, -1].view(kv_heads, group, queries).permute(2, 0, 1)[..., None]
        merged = torch.addcmul(seen, of_own, near.view(queries, kv_heads, group, dim))
        return merged.reshape(1, queries, heads, dim), None

    def _tables_of(self, rows: int, queries: int, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where packed queries, parts of the prefix, single queries and own keys begin and end; one for all layers."""
        found = self._tables.get((rows, parts))
        if found is None:
            numbers = torch.arange(parts + 1, device=self._start.device)
            ends = numbers[:2] * queries
            packed, prefix = (numbers * rows).int(), (numbers * self._start // parts).int()
            found = self._tables[rows, parts] = packed, prefix, ends.int(), (self._start + ends).int()
        return found


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of several sequences that lie one behind the other, and its log-sum-exp [heads, all queries].

    Args:
        query: [all queries, heads, head_dim].
        key, value: [places, kv_heads, head_dim]; what lies outside of the sequences is not read.
        query_ends, key_ends: int32 [sequences + 1]: sequence i is ``ends[i] ... ends[i + 1] - 1``.
        causal: the last query of a sequence sees all its keys, the one before one less.
    """
    if not query.is_cuda:
        return _reference(query, key, value, query_ends.tolist(), key_ends.tolist(), scale, causal=causal)
    attend = torch.ops.aten._flash_attention_forward  # the public function changes its signature between releases
    out, lse = attend(
        query, key, value, query_ends, key_ends, most_queries, most_keys, 0.0, causal, False, scale=scale
    )[:2]
    return out, lse


def _reference(
    query: Tensor, key: Tensor, value: Tensor, query_ends: list[int], key_ends: list[int], scale: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    group = query.shape[1] // key.shape[1]
    outs, sums = [], []
    for index in range(len(query_ends) - 1):
        rows, places = slice(*query_ends[index : index + 2]), slice(*key_ends[index : index + 2])
        keys, values = (t[places].float().repeat_interleave(group, 1).transpose(0, 1) for t in (key, value))
        scores = query[rows].float().transpose(0, 1) @ keys.transpose(1, 2) * scale
        if causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(~seen, -torch.inf)
        outs.append((scores.softmax(-1) @ values).transpose(0, 1).to(query.dtype))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, 1)


@cache
def has_flash(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether FlashAttention runs there and gives what it should, on a small example."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(24, heads, dim, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    ends = torch.tensor([0, 8, 24], dtype=torch.int32, device=device)
    try:
        found = varlen(query, key, value, ends, ends, 16, 16, 0.3, causal=True)
    except (RuntimeError, AttributeError, TypeError):
        return False
    wanted = varlen(query.cpu(), key.cpu(), value.cpu(), ends.cpu(), ends.cpu(), 16, 16, 0.3, causal=True)
    pairs = zip(found, wanted, strict=True)
    return all(torch.allclose(a.float().cpu(), b.float(), rtol=3e-2, atol=3e-2) for a, b in pairs)
