"""The board: prompts laid out in one buffer a layer, any of whose tokens can be computed again in place.

A pass over the board takes tokens from anywhere in the prompts. In every layer their new keys and values are written
to their places first (a scatter), then their queries look at the whole board through an explicit mask: a token sees
what stands at its own place or before it (``kv_pos <= q_pos``), whatever else is computed in the same pass. Kernels'
own causal masks count from the end and would be wrong for tokens that do not stand together.

Everything happens in cache layers and in the attention seam, so that every rotary architecture works unpatched. Rows
are prompts: the engine lays out one, measurements lay out many of different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer

from nnm_core.injection.plan import Plan
from nnm_core.injection.static import keeps_logits, new_cache
from nnm_core.model.attention import Attend, AttentionIntervention, intervene
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache, PlacedLayer

# Called in every layer of a pass: (layer, queries, keys, what may be seen, keyword arguments of the attention).
Observer = Callable[[int, Tensor, Tensor, Tensor, dict[str, Any]], None]

# Called in every layer of a pass: (layer, its buffer, places of the pass's tokens, their fresh keys and values).
Correction = Callable[[int, PlacedLayer, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Span:
    """A memory on the board.

    Attributes:
        row: of which prompt.
        start, end: its places.
        exact: its state is that of reading, whatever is done to the others.
        step: index of its step in the plan.
    """

    row: int
    start: int
    end: int
    exact: bool
    step: int

    def __len__(self) -> int:
        return self.end - self.start


class Board:
    """Prompts, the states that are known of them, and passes over any of their tokens.

    Attributes:
        model: computes.
        ids: token ids [rows, places]; beyond a row's length any.
        lengths: tokens of each prompt [rows].
        unread: places whose states are not on the board yet, bool [rows, places]. Every pass must take them.
        question: where each prompt's last text begins [rows].
        spans: the memories, row by row.
        cache: one buffer a layer, [rows, kv_heads, capacity, head_dim].
        room: tokens that may be put behind the longest prompt.
        adjustment: changes the attention of every pass, behind the mask; None for none.
    """

    def __init__(
        self,
        model: LoadedModel,
        ids: Tensor,
        lengths: Tensor,
        unread: Tensor,
        question: Tensor,
        spans: Sequence[Span],
        cache: PlacedCache,
        room: int = 0,
    ) -> None:
        self.model = model
        self.ids = ids
        self.lengths = lengths
        self.unread = unread
        self.question = question
        self.spans = tuple(spans)
        self.cache = cache
        self.room = room
        self.adjustment: AttentionIntervention | None = None

    @classmethod
    def of_plan(cls, model: LoadedModel, plan: Plan, room: int) -> Board:
        """One prompt with the states that its plan loads."""
        device = model.device
        ids = torch.tensor([[token for step in plan.steps for token in step.segment.ids]], device=device)
        unread = torch.ones_like(ids, dtype=torch.bool)
        cache = new_cache(model, plan.length + room)
        spans = []
        for index, step in enumerate(plan.steps):
            end = step.start + len(step.segment.ids)
            if step.state is not None:
                unread[0, step.start : end] = False
                cache.advance(step.start)
                step.state.copy_into(cache)
            if step.segment.memory is not None and step.state is not None:
                spans.append(Span(0, step.start, end, step.action == "exact", index))
        question = torch.tensor([plan.steps[-1].start], device=device)
        return cls(model, ids, torch.tensor([plan.length], device=device), unread, question, spans, cache, room)

    @classmethod
    def stack(cls, boards: Sequence[Board]) -> Board:
        """Boards of one model as the rows of one; what lies behind a shorter row's end is zero and never seen."""
        width = max(board.ids.shape[1] for board in boards)
        room = max(board.room for board in boards)
        cache = PlacedCache(boards[0].model.layers, capacity=width + room)
        for index, layer in enumerate(cache.placed):
            states = [board.cache.placed[index] for board in boards]
            if any(state.is_initialized for state in states):
                keys, values = _stacked(boards, states, width + room)
                layer.write(0, keys, values)
                layer.length = width
        spans: list[Span] = []
        rows = 0
        for board in boards:
            spans += [replace(span, row=span.row + rows) for span in board.spans]
            rows += len(board.ids)
        ids, unread = (
            torch.cat([functional.pad(side, (0, width - side.shape[1])) for side in sides])
            for sides in ([board.ids for board in boards], [board.unread for board in boards])
        )
        lengths, question = (torch.cat(sides) for sides in ([b.lengths for b in boards], [b.question for b in boards]))
        return cls(boards[0].model, ids, lengths, unread, question, spans, cache, room)

    @property
    def places(self) -> Tensor:
        """0, 1, 2, ... [places]."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def mask_of(self, spans: Sequence[Span]) -> Tensor:
        """The places of these memories, bool [rows, places]."""
        mask = torch.zeros_like(self.unread)
        for span in spans:
            mask[span.row, span.start : span.end] = True
        return mask

    def composed(self) -> tuple[Span, ...]:
        """Memories that stand behind another context than they were read behind."""
        return tuple(span for span in self.spans if not span.exact)

    @torch.inference_mode()
    def compute(
        self,
        wanted: Tensor,
        *,
        observe: Observer | None = None,
        stop_before: int | None = None,
        correct: Correction | None = None,
    ) -> Tensor:
        """Compute the wanted tokens, and what is unread, and write their keys and values to their places.

        Args:
            wanted: bool [rows, places].
            observe: looks on in every layer.
            stop_before: end the pass before the attention of this layer; its keys and values are written.
            correct: may change a layer's states in the light of the fresh ones, before these are written.

        Returns:
            logits [rows, vocabulary] behind each prompt's last token; of no meaning if the pass was stopped.
        """
        positions = self.positions(wanted | self.unread)
        ids = self.ids.gather(1, positions)
        return self.pass_over(ids, positions, observe=observe, stop_before=stop_before, correct=correct)

    def pass_over(
        self,
        ids: Tensor,
        positions: Tensor,
        *,
        observe: Observer | None = None,
        stop_before: int | None = None,
        correct: Correction | None = None,
    ) -> Tensor:
        """Compute these tokens at these places, [rows, tokens] both; the last of each row gives its logits."""
        width = self.ids.shape[1]
        for layer in self.cache.placed:
            layer.length = max(layer.length, width)
        keys = torch.arange(self.cache.length, device=ids.device)
        look = _Look(positions[:, :, None] - keys, self.model.dtype, observe, self.adjustment)
        cache = _BoardCache(self.cache.placed, positions, stop_before, correct)
        only_last = {"logits_to_keep": 1} if keeps_logits(self.model.hf) else {}
        with torch.inference_mode(), intervene(look), suppress(_StopPass):
            output = self.model.hf(
                input_ids=ids,
                position_ids=positions,
                attention_mask=look.mask(None),
                past_key_values=cache,
                use_cache=True,
                **only_last,
            )
            logits: Tensor = output.logits[:, -1]
            return logits
        return ids.new_empty((len(ids), 0), dtype=self.model.dtype)

    def extend(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Put one more token a row behind the prompts, and predict the next, greedily; both [rows]."""
        for layer in self.cache.placed:
            layer.length = self.ids.shape[1] + self.room
        chosen: Tensor = self.pass_over(tokens[:, None], places[:, None]).argmax(-1)
        return chosen

    def positions(self, wanted: Tensor) -> Tensor:
        """Places of the wanted tokens, row by row in order; short rows repeat their last, which changes nothing."""
        count = int(wanted.sum(1).max())
        last = self.lengths[:, None] - 1
        order = torch.where(wanted, self.places, self.ids.shape[1]).sort(dim=1).values[:, :count]
        return torch.where(order < self.ids.shape[1], order, last)


def _stacked(boards: Sequence[Board], layers: Sequence[PlacedLayer], capacity: int) -> tuple[Tensor, Tensor]:
    """One layer of several boards, zero where nothing stands; at least one of them holds states."""
    like = next(layer.view()[0] for layer in layers if layer.is_initialized)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for board, layer in zip(boards, layers, strict=True):
        blank = like.new_zeros((len(board.ids), like.shape[1], 0, like.shape[3]))
        for side, states in zip(sides, layer.view() if layer.is_initialized else (blank, blank), strict=True):
            side.append(functional.pad(states, (0, 0, 0, capacity - states.shape[2])))
    return torch.cat(sides[0]), torch.cat(sides[1])


class _Look:
    """The attention of a pass: the board's mask in place of the model's own, windows included; an observer looks on."""

    def __init__(
        self,
        distance: Tensor,
        dtype: torch.dtype,
        observe: Observer | None,
        adjustment: AttentionIntervention | None,
    ) -> None:
        self._distance, self._seen, self._dtype = distance, distance >= 0, dtype
        self._observe, self._adjustment = observe, adjustment
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        """Additive mask [rows, 1, tokens, places] for a layer with that window."""
        if window not in self._masks:
            seen = self.seen(window)
            mask = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device)
            self._masks[window] = mask.masked_fill_(~seen, torch.finfo(self._dtype).min)[:, None]
        return self._masks[window]

    def seen(self, window: int | None) -> Tensor:
        """What may be seen, bool [rows, tokens, places]."""
        return self._seen if window is None else self._seen & (self._distance < window)

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
        """An `AttentionIntervention`."""
        window = kwargs.get("sliding_window")
        if self._observe is not None:
            self._observe(int(module.layer_idx), query, key, self.seen(window), kwargs)  # type: ignore[arg-type]  # nn.Module.__getattr__ is typed Tensor | Module
        mask = self.mask(window)
        if self._adjustment is not None:
            return self._adjustment(attend, module, query, key, value, mask, **kwargs)
        return attend(module, query, key, value, mask, **kwargs)


class _StopPass(Exception):  # no error: the pass has done what it was for
    """Ends a pass in the middle of the model."""


class _BoardLayer(DynamicLayer):
    """Writes a pass's keys and values to their places in the board's buffer."""

    def __init__(self, index: int, placed: PlacedLayer, pass_: _BoardCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self._index, self._placed, self._pass = index, placed, pass_

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by attention modules."""
        if self._pass.correct is not None:
            self._pass.correct(self._index, self._placed, self._pass.positions, key_states, value_states)
        self._placed.scatter(self._pass.positions, key_states, value_states)
        if self._index == self._pass.stop_before:
            raise _StopPass
        return self._placed.view()

    def get_seq_length(self) -> int:
        """Tokens on the board."""
        return self._placed.length


class _BoardCache(Cache):
    """The view of a board that a pass writes through."""

    def __init__(
        self, placed: Sequence[PlacedLayer], positions: Tensor, stop_before: int | None, correct: Correction | None
    ) -> None:
        self.positions, self.stop_before, self.correct = positions, stop_before, correct
        super().__init__(layers=[_BoardLayer(index, layer, self) for index, layer in enumerate(placed)])
