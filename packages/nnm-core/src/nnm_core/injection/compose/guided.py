"""The tokens that the question looks at are computed again, and some everywhere, to learn how the others have moved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose.attention import question_attention
from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.offset import OffsetKind
from nnm_core.injection.compose.repair import Repair, best, evenly


@dataclass(frozen=True)
class Guided(Repair):
    """Query-guided repair (FusionRAG, SIGMOD 2026; ProphetKV 2026), with a share for learning offsets.

    The question is read over the memories as they are; the tokens that it attends to most (see `QuestionAttention`)
    are computed again, all seeing everything before them. A share of the budget goes to tokens at even distances in
    all memories: together with the others they tell how each memory has moved (`LocalOffset`), and the rest is moved
    accordingly.

    Attributes:
        spread: share of the budget that is spread evenly.
        first_share: layers below this share of all do not count for where the question looks.
    """

    offset: OffsetKind = "local"
    name: str = "guided-offset"
    spread: float = 1 / 3
    first_share: float = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.spread <= 1 and 0 <= self.first_share < 1):
            raise InvalidInputError(
                f"spread={self.spread}, first_share={self.first_share}.", hint="Both are shares of 1."
            )

    def choose(self, board: Board) -> Tensor:
        """See `Repair`."""
        allowed = board.mask_of(board.composed())
        budget = self.budget(board)
        chosen = evenly(allowed, (budget * self.spread).long())
        scores = question_attention(board, self.first_share)
        return chosen | best(scores, allowed & ~chosen, budget - chosen.sum(1))
