"""The first tokens of each memory are computed again: they had become attention sinks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.repair import Repair, best


@dataclass(frozen=True)
class Link(Repair):
    """EPIC's LegoLink (Hu et al. 2024, arXiv 2410.15332): the first k tokens of every memory but the first.

    k is as large as the budget allows, the same for all memories: k = ratio * tokens / composed memories.
    """

    name: str = "link"

    def choose(self, board: Board) -> Tensor:
        """See `Repair`."""
        scores = board.unread.new_zeros(board.unread.shape, dtype=board.model.dtype).float()
        for span in board.composed():
            scores[span.row, span.start : span.end] = -(board.places[: len(span)]).float()
        return best(scores, board.mask_of(board.composed()), self.budget(board))
