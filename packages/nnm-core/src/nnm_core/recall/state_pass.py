"""One short query read over the stored states of many memories at once: the pass that re-ranking is made of.

Every row of the batch is ``left context | one memory | cue | query``, of which only cue and query are read; the rest
are stored keys and values. Memories differ in length, so rows are padded on the left: distances between tokens stay
true (sliding windows, ALiBi) and only the positions are given by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from nnm_core.embedding.kv_embedding import EncoderModel
from nnm_core.model.attention import AttentionIntervention, intervene

LayerStates = tuple[Tensor, Tensor]


class StateView(Protocol):
    """Keys and values as the attention reads them; `nnm_core.states.state.PlacedState` is one."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        ...

    @property
    def layers(self) -> Sequence[LayerStates]:
        """Per layer rotated keys and values, [kv_heads, tokens, head_dim]."""
        ...


@dataclass(frozen=True)
class Rows:
    """Where things lie in the padded rows of one batch.

    Attributes:
        starts: per row the first column of the memory, [rows].
        stop: one past the memory's last column, the same in all rows.
        cue: number of tokens read before the query.
        query: number of query tokens.
    """

    starts: Tensor
    stop: int
    cue: int
    query: int


Probe = Callable[[Rows], AttentionIntervention]


@torch.inference_mode()
def read_over(
    model: EncoderModel,
    left: StateView,
    memories: Sequence[StateView],
    *,
    cue: Sequence[int],
    query: Sequence[int],
    probe: Probe | None = None,
) -> Tensor:
    """Log-probabilities, float32 [memories, len(query)], of the query's tokens behind each memory and the cue.

    Args:
        model: its attention must be interceptable if a probe is given.
        left: the state of the left context that all memories were computed behind.
        memories: their placed states, each directly behind `left`.
        cue: at least one token id before the query.
        query: token ids, at least one.
        probe: makes an attention intervention that looks on.
    """
    longest = max(memory.length for memory in memories)
    width = left.length + longest
    starts = torch.tensor([width - memory.length for memory in memories], device=model.device)
    ids = torch.tensor([[*cue, *query]], device=model.device).expand(len(memories), -1)
    places = torch.arange(ids.shape[1], device=model.device)[None, :]
    real = torch.arange(width + ids.shape[1], device=model.device)[None, :] >= (starts - left.length)[:, None]
    looking = nullcontext() if probe is None else intervene(probe(Rows(starts, width, len(cue), len(query))))
    with cast("AbstractContextManager[None]", looking):
        logits = model.hf(
            input_ids=ids,
            attention_mask=real.long(),
            position_ids=width - starts[:, None] + left.length + places,
            past_key_values=_padded_cache(left, memories, width),
            use_cache=True,
        ).logits
    behind = logits[:, len(cue) - 1 : -1].float()
    return cast(Tensor, behind.log_softmax(-1).gather(2, ids[:, len(cue) :, None])[..., 0])


def _padded_cache(left: StateView, memories: Sequence[StateView], width: int) -> DynamicCache:
    """Left context and memory of every row, moved to the right edge of `width` columns.

    All tokens of a layer are put in one line and picked from it: two operations a tensor, however many rows there are.
    What a row's columns before its left context hold is masked.
    """
    device = memories[0].layers[0][0].device
    lengths = torch.tensor([memory.length for memory in memories])
    ends = left.length + lengths.cumsum(0)
    column = torch.arange(width) - width  # -1 is the row's last token
    picked = ends[:, None] + column[None, :]
    before = column[None, :] < -lengths[:, None]
    picked = torch.where(before, (column[None, :] + lengths[:, None] + left.length).clamp_min(0), picked)
    picked = picked.flatten().to(device)
    cache = DynamicCache()
    for index in range(len(memories[0].layers)):
        rows = [left.layers[index], *(memory.layers[index] for memory in memories)]
        key, value = (
            torch.cat([row[part] for row in rows], 1)[:, picked].unflatten(1, (len(memories), width)).transpose(0, 1)
            for part in (0, 1)
        )
        cache.update(key, value, index)
    return cache


class Nothing:
    """The state of no tokens: for models and layouts without a left context, and as the memory of the null reading."""

    length = 0

    def __init__(self, like: StateView) -> None:
        self.layers = tuple((key[:, :0], value[:, :0]) for key, value in like.layers)
