"""Tokens at even distances are computed again: enough to see how each memory has moved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.offset import OffsetKind
from nnm_core.injection.compose.repair import Repair, evenly


@dataclass(frozen=True)
class Spread(Repair):
    """AgentKVShift (2026, arXiv 2607.21604): probe tokens give each memory's mean offset, which the others get.

    The probes stand at even distances; no question is asked first, so it is the cheapest of the repairs.
    """

    offset: OffsetKind = "mean"
    name: str = "offset"

    def choose(self, board: Board) -> Tensor:
        """See `Repair`."""
        return evenly(board.mask_of(board.composed()), self.budget(board))
