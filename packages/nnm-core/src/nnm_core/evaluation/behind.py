"""Greedy answers of many prompts at once, each behind states of its own: what measurements on whole data sets need.

Rows of a batch are ``states | tokens that are read``. Both parts are padded on the left, positions are given by hand
and the padding is masked, so every row sees exactly its own prompt. In sliding-window layers the padding between the
two parts would count as distance: such models need batches of rows that are read equally long (`batch=1` always is).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache
from nnm_core.states.state import PlacedState


@dataclass(frozen=True)
class Prompt:
    """One row: placed states, in order and without gaps, and the tokens that are read behind them (at least one)."""

    states: tuple[PlacedState, ...]
    token_ids: tuple[int, ...]

    @property
    def loaded(self) -> int:
        """Tokens that the states hold."""
        return sum(state.length - state.skipped for state in self.states)

    @property
    def skipped(self) -> int:
        """Tokens that were left out of them: they count as positions."""
        return sum(state.skipped for state in self.states)


@dataclass(frozen=True)
class Batch:
    """Where things lie in the padded rows of one batch.

    Attributes:
        loaded: columns of the states' part.
        starts: per row the first column that is no padding, [rows].
    """

    loaded: int
    starts: Tensor


@dataclass(frozen=True)
class Answers:
    """What came out of one batch.

    Attributes:
        token_ids: per row the greedy tokens, without the end of the turn.
        logits: float32 [rows, vocabulary] of the first one.
    """

    token_ids: tuple[tuple[int, ...], ...]
    logits: Tensor


Around = Callable[[Batch], AbstractContextManager[object]]


@torch.inference_mode()
def answers_behind(
    model: LoadedModel, prompts: Sequence[Prompt], *, max_tokens: int, around: Around | None = None
) -> Answers:
    """Read and decode one batch.

    Args:
        prompts: the rows; for as little padding as can be, of similar length.
        max_tokens: of each answer at most.
        around: makes a context in which all forward passes of the batch run.
    """
    width = max(prompt.loaded for prompt in prompts)
    longest = max(len(prompt.token_ids) for prompt in prompts)
    cache, real = _cache(model, prompts, width, width + longest + max_tokens)
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        real[row, width + longest - len(prompt.token_ids) :] = True
    ids, real = ids.to(model.device), real.to(model.device)
    starts = torch.tensor([width - prompt.loaded for prompt in prompts], device=model.device)
    # The position of a column is the number of real columns before it, and of those that were left out.
    skipped = torch.tensor([prompt.skipped for prompt in prompts], device=model.device)
    places = ((real[:, : width + longest].cumsum(1) - 1).clamp_min(0) + skipped[:, None])[:, width:]
    with nullcontext() if around is None else around(Batch(width, starts)):
        return _decode(model, cache, ids, real, places, max_tokens, shrink=around is None)


def _decode(
    model: LoadedModel, cache: PlacedCache, ids: Tensor, real: Tensor, places: Tensor, max_tokens: int, *, shrink: bool
) -> Answers:
    """Args: shrink: let go of rows that have ended as soon as they are half of those that are left."""
    first: Tensor | None = None
    found: list[list[int]] = [[] for _ in ids]
    active = list(range(len(ids)))
    ended: set[int] = set()
    seen = real.shape[1] - max_tokens
    for step in range(max_tokens):
        mask = real[:, : seen + step]
        output = model.hf(
            input_ids=ids, attention_mask=mask.long(), position_ids=places, past_key_values=cache, use_cache=True
        )
        logits = output.logits[:, -1].float()
        first = logits if first is None else first
        ids = logits.argmax(-1, keepdim=True)
        for row, token in zip(active, ids[:, 0].tolist(), strict=True):
            if token in model.eos_token_ids:
                ended.add(row)
            elif row not in ended:
                found[row].append(token)
        if len(ended) == len(found):
            break
        places = places[:, -1:] + 1
        kept = [index for index, row in enumerate(active) if row not in ended]
        if shrink and 2 * len(kept) <= len(active):
            active = [active[index] for index in kept]
            ids, real, places = ids[kept], real[kept], places[kept]
            cache.batch_select_indices(torch.tensor(kept, device=ids.device))
    assert first is not None  # max_tokens is at least one
    return Answers(tuple(tuple(row) for row in found), first)


def _cache(model: LoadedModel, prompts: Sequence[Prompt], width: int, capacity: int) -> tuple[PlacedCache, Tensor]:
    """A cache with every row's states, the last of them ending at column `width`, and which columns are real."""
    cache = PlacedCache(model.layers, capacity=capacity)
    real = torch.zeros((len(prompts), capacity), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        real[row, width - prompt.loaded : width] = True
    real[:, capacity:] = True
    if not width:
        return cache, real
    like = next(prompt for prompt in prompts if prompt.states).states[0].layers
    for index, layer in enumerate(cache.placed):
        sides = [tensor.new_zeros((len(prompts), tensor.shape[0], width, tensor.shape[2])) for tensor in like[index]]
        for row, prompt in enumerate(prompts):
            end = width - prompt.loaded
            for state in prompt.states:
                start, end = end, end + state.length - state.skipped
                for side, tensor in zip(sides, state.layers[index], strict=True):
                    side[row, :, start:end] = tensor
        layer.append(*sides)
    return cache, real
