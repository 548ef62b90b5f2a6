"""How strongly a query's tokens look at the tokens of a memory, head by head, while it is read over stored states.

In-context re-ranking (Chen et al., arXiv 2410.02642) and QRHead (arXiv 2506.09944) rank documents that stand in one
prompt by the attention that they get. Here every memory stands alone, so a softmax over its own tokens would make all
of them look alike; what is compared is the logits themselves:

    A_h(q, m) = sum_t w_t * logsumexp_j (q_t . k_j / sqrt(d)) / sum_t w_t,      j over the tokens of the memory

that is the log of the unnormalised attention mass on the memory, the numerator of a softmax over all memories together.
w_t is the surprise -log P(q_t | no memory): "the" asks for nothing, a name does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnm_core.model.attention import Attend
from nnm_core.recall.state_pass import Rows

Head = tuple[int, int]
"""(layer, query head)."""


class AttentionProbe:
    """An intervention that changes nothing and notes the attention of the query's tokens on each memory.

    Args:
        rows: where the memories and the query lie.
        weights: of the query's tokens, [query], not all zero.
        heads: which to note; None notes all heads of all layers.
        profiles: also keep, per memory, how the attention is spread over its tokens.
    """

    def __init__(
        self, rows: Rows, weights: Tensor, *, heads: Sequence[Head] | None = None, profiles: bool = False
    ) -> None:
        self._rows = rows
        self._weights = (weights / weights.sum()).float()
        self._heads = None if heads is None else _by_layer(heads)
        self._profiles = profiles
        self._scores: dict[int, Tensor] = {}
        self._spread: list[Tensor] = []

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
        """See `nnm_core.model.attention.AttentionIntervention`."""
        layer = int(cast(int, module.layer_idx))
        heads = list(range(query.shape[1])) if self._heads is None else self._heads.get(layer, [])
        if heads:
            self._note(layer, query[:, heads, self._rows.cue :], _keys_of(key, heads, query.shape[1]), kwargs)
        return attend(module, query, key, value, attention_mask, **kwargs)

    def scores(self) -> Tensor:
        """float32 [rows, noted heads], in the order of layers and heads."""
        return torch.cat([self._scores[layer] for layer in sorted(self._scores)], dim=1)

    def spread(self) -> Tensor:
        """float32 [rows, columns]: share of the attention on each column of the memories, mean over the noted heads."""
        return torch.stack(self._spread).mean(0)

    def _note(self, layer: int, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        logits = (query.float() @ key[:, :, : self._rows.stop].float().transpose(2, 3)) * scaling
        if kwargs.get("softcap"):
            logits = kwargs["softcap"] * torch.tanh(logits / kwargs["softcap"])
        columns = torch.arange(self._rows.stop, device=logits.device)
        inside = columns[None, :] >= self._rows.starts[:, None]
        logits = logits.masked_fill(~inside[:, None, None, :], float("-inf"))
        self._scores[layer] = torch.einsum("rhq,q->rh", logits.logsumexp(-1), self._weights)
        if self._profiles:
            self._spread.append(torch.einsum("rhqj,q->rj", logits.softmax(-1), self._weights) / logits.shape[1])


def _by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        layers.setdefault(layer, []).append(head)
    return layers


def _keys_of(key: Tensor, heads: Sequence[int], query_heads: int) -> Tensor:
    """The keys that the query heads read: [rows, len(heads), columns, head_dim]."""
    group = query_heads // key.shape[1]
    return key[:, [head // group for head in heads]]
