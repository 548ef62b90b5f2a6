"""What the recomputed tokens tell about the others: a memory's keys and values have moved, layer by layer, alike.

A memory that was read behind other text has other states than one that was read alone, and most of the difference is
shared by its tokens. So what the recomputed ones have moved by is added to those that are not recomputed, in every
layer, before its attention: to values as they are and to keys before rotation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nnm_core.injection.compose.board import Board
from nnm_core.model.positions import Tables
from nnm_core.states.cache import PlacedLayer

OffsetKind = Literal["none", "mean", "local"]
# Tokens of a pass, and their weights.
Side = tuple[Tensor, Tensor]


class Offset(ABC):
    """A `Correction`: moves the tokens of composed memories that are not computed again.

    Args:
        board: what is repaired.
        chosen: the places that are computed again, bool [rows, places].
    """

    def __init__(self, board: Board, chosen: Tensor) -> None:
        self.rotary = board.model.positions.rotary
        self.chosen = chosen
        self.places = board.places[None]
        # Which of its row's memories a place belongs to, counted from 1; 0 for none [rows, places].
        self.owner = torch.zeros_like(board.ids)
        counts = [0] * len(board.ids)
        for span in board.composed():
            counts[span.row] += 1
            self.owner[span.row, span.start : span.end] = counts[span.row]
        self.positions = board.positions(chosen | board.unread)

    def __call__(self, index: int, layer: PlacedLayer, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Correct the buffers of layer `index`, before fresh states [rows, heads, tokens, dim] are written."""
        width = self.owner.shape[1]
        keys, values = (buffer[:, :, :width] for buffer in layer.view())
        where = positions[:, None, :, None].expand(value.shape)
        # There is nothing yet, which may be anything, where a token is read for the first time.
        again = self.chosen.gather(1, positions)[:, None, :, None]
        values += self.shift(torch.where(again, value - values.gather(2, where), 0))
        moved = torch.where(again, key - keys.gather(2, where), 0)
        rotary = self.rotary[index]
        if rotary is None:
            keys += self.shift(moved)
            return
        plain = rotary.rotate(moved, _backwards(rotary.tables(positions, key)))
        keys += rotary.rotate(self.shift(plain), rotary.tables(self.places, key))

    def shift(self, moved: Tensor) -> Tensor:
        """By how much each place is moved; see `spread`."""
        return self.spread(moved)

    @abstractmethod
    def spread(self, moved: Tensor) -> Tensor:
        """What each place moves by, [rows, heads, places, dim], from what the pass's tokens did; 0 where chosen."""


class MeanOffset(Offset):
    """The mean-offset correction of AgentKVShift (2026, arXiv 2607.21604).

    With R the recomputed tokens of a memory: x_t += mean_{r in R} (x'_r - x_r) for its other tokens t.
    """

    def spread(self, moved: Tensor) -> Tensor:
        """See `Offset`."""
        mean = torch.einsum("rmt,rhtd->rmhd", self._weights.to(moved.dtype), moved)
        return torch.einsum("rmp,rmhd->rhpd", self._others.to(moved.dtype), mean)

    @cached_property
    def _members(self) -> Tensor:
        """bool [rows, memories, places]."""
        numbers = torch.arange(1, int(self.owner.max()) + 1, device=self.owner.device)
        return self.owner[:, None] == numbers[:, None]

    @cached_property
    def _others(self) -> Tensor:
        return self._members & ~self.chosen[:, None]

    @cached_property
    def _weights(self) -> Tensor:
        """Each memory's recomputed tokens with equal weights, [rows, memories, tokens of the pass]."""
        where = self.positions[:, None].expand(-1, self._members.shape[1], -1)
        taken = (self._members & self.chosen[:, None]).gather(2, where).float()
        taken[:, :, 1:] *= (self.positions[:, 1:] != self.positions[:, :-1])[:, None]  # repeats fill up short rows
        return taken / taken.sum(2, keepdim=True).clamp_min(1.0)


class LocalOffset(Offset):
    """Between two recomputed tokens of a memory the offset is interpolated, beyond the last one it stays.

    For a token t between the recomputed a < t < b of the same memory, with d_a = x'_a - x_a:

        x_t += w ((b - t) / (b - a) d_a + (t - a) / (b - a) d_b)

    The mean of `MeanOffset` is the same for a whole memory; but its beginning moves otherwise than its end, and a
    sentence that much is said about before otherwise than one that is new.

    How far the offsets are trusted, w, is found on the recomputed tokens themselves, for each head of each layer: with
    p_r what the same rule says of a recomputed token r from the others alone, ``w = clamp(sum_r d_r p_r / sum_r p_r^2,
    0, 1)``, the least squares fit. Where neighbours do not move alike nothing else is moved.
    """

    def spread(self, moved: Tensor) -> Tensor:
        """See `Offset`."""
        before, after = self._neighbours
        return _taken(moved, *before) + _taken(moved, *after)

    def shift(self, moved: Tensor) -> Tensor:
        """See `Offset`."""
        return self.trust(moved).to(moved.dtype)[:, :, None, None] * self.spread(moved)

    def trust(self, moved: Tensor) -> Tensor:
        """w of the class, [rows, heads] float32."""
        before, after = self._others
        predicted = (_taken(moved, *before) + _taken(moved, *after)).float()
        agreed, size = (moved.float() * predicted).sum((2, 3)), predicted.square().sum((2, 3))
        return (agreed / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(0, 1)

    @cached_property
    def _given(self) -> Tensor:
        """Recomputed tokens of memories, bool [rows, places]."""
        return self.chosen & (self.owner > 0)

    @cached_property
    def _around(self) -> tuple[Tensor, Tensor]:
        """The recomputed token at or before each place, and at or behind it; -1 and the width where there is none."""
        width = self.owner.shape[1]
        places = self.places.expand_as(self.owner)
        before = torch.where(self._given, places, -1).cummax(1).values
        after = torch.where(self._given, places, width).flip(1).cummin(1).values.flip(1)
        return before, after

    @cached_property
    def _neighbours(self) -> tuple[Side, Side]:
        """For each place the pass's tokens that it follows, [rows, places] each."""
        return self._sides(*self._around, (self.owner > 0) & ~self.chosen)

    @cached_property
    def _others(self) -> tuple[Side, Side]:
        """For each token of the pass that is recomputed the ones beside it, [rows, tokens of the pass] each."""
        before, after = self._around
        before = functional.pad(before[:, :-1], (1, 0), value=-1)
        after = functional.pad(after[:, 1:], (0, 1), value=self.owner.shape[1])
        first, second = self._sides(before, after, self._given)
        return _at(first, self.positions), _at(second, self.positions)

    def _sides(self, before: Tensor, after: Tensor, moves: Tensor) -> tuple[Side, Side]:
        """Tokens of the pass at the places `before` and `after`, and how much each counts; 0 where nothing moves."""
        width = self.owner.shape[1]
        has_before = (before >= 0) & (self.owner.gather(1, before.clamp_min(0)) == self.owner)
        has_after = (after < width) & (self.owner.gather(1, after.clamp_max(width - 1)) == self.owner)
        between = (self.places - before).float() / (after - before).clamp_min(1)
        weight_after = torch.where(has_before & has_after, between, has_after.float())
        weight_before = torch.where(has_before & has_after, 1 - between, has_before.float())
        ordered = self.positions.contiguous()
        sides = ((before.clamp_min(0), weight_before), (after.clamp_max(width - 1), weight_after))
        first, second = (
            (torch.searchsorted(ordered, side.contiguous()).clamp_max(ordered.shape[1] - 1), weight * moves)
            for side, weight in sides
        )
        return first, second


def make_offset(kind: OffsetKind, board: Board, chosen: Tensor) -> Offset | None:
    """The correction of that kind, if there is any."""
    if kind == "none":
        return None
    return MeanOffset(board, chosen) if kind == "mean" else LocalOffset(board, chosen)


def _taken(moved: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    where = tokens[:, None, :, None].expand(-1, moved.shape[1], -1, moved.shape[3])
    return moved.gather(2, where) * weights[:, None, :, None].to(moved.dtype)


def _at(side: Side, places: Tensor) -> Side:
    return side[0].gather(1, places), side[1].gather(1, places)


def _backwards(tables: Tables) -> Tables:
    """Tables that undo a rotation, its scale included."""
    cos, sin = tables
    size = cos.square() + sin.square()
    return cos / size, -sin / size
