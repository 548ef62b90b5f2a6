"""What all composers that compute tokens again have in common: how much they may, and one pass that does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose.base import Composed, Composition
from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.offset import OffsetKind, make_offset
from nnm_core.model.load import LoadedModel

DEFAULT_RATIO = 0.15
_TAKES_MASKS = ("sdpa", "eager")


def board_refusal(model: LoadedModel) -> str:
    """Why tokens of this model cannot be computed again in place; empty if they can."""
    if model.positions.family != "rotary":
        return (
            f"a composition of {model.name} cannot be repaired: its positions are {model.positions.family}, not rotary"
        )
    if not model.intervenes:
        return f"a composition of {model.name} cannot be repaired: its attention cannot be given a mask of ours"
    implementation = str(getattr(model.hf.config, "_attn_implementation", "")).removeprefix("nnm_")
    if implementation not in _TAKES_MASKS:
        return f"a composition of {model.name} cannot be repaired: {implementation} attention takes no mask"
    return ""


@dataclass(frozen=True)
class Repair(ABC):
    """Places states side by side and computes some of their tokens again, in one pass together with the question.

    Attributes:
        ratio: how many tokens may be computed again, as a share of the tokens of all memories in the prompt.
        offset: how the tokens that are not computed again follow those that are (`nnm_core.injection.compose.offset`).
        name: in receipts and calibrations.
    """

    ratio: float = DEFAULT_RATIO
    offset: OffsetKind = "none"
    name: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidInputError(f"ratio is {self.ratio}.", hint="It is a share of tokens, 0 to 1.")

    def refusal(self, model: LoadedModel) -> str:
        """See `Composer`."""
        return board_refusal(model)

    def prefill(self, work: Composition) -> Composed:
        """See `Composer`."""
        board = Board.of_plan(work.model, work.plan, work.room)
        logits, repaired = self.arrange(board)
        counts = repaired[0].cpu()
        recomputed = {span.step: int(counts[span.start : span.end].sum()) for span in board.composed()}
        return Composed(board.cache, logits[0], recomputed)

    @torch.inference_mode()
    def arrange(self, board: Board) -> tuple[Tensor, Tensor]:
        """Repair what is on the board: logits [rows, vocabulary], and the places that were computed again, bool."""
        if not self.ratio:
            nothing = torch.zeros_like(board.unread)
            return board.compute(nothing), nothing
        chosen = self.choose(board)
        return board.compute(chosen, correct=make_offset(self.offset, board, chosen)), chosen

    @abstractmethod
    def choose(self, board: Board) -> Tensor:
        """The places to be computed again, bool [rows, places]; within `budget`, and not in exact memories."""

    def budget(self, board: Board) -> Tensor:
        """Tokens that may be computed again, of each row [rows]."""
        return (board.mask_of(board.spans).sum(1) * self.ratio).long()


def best(scores: Tensor, allowed: Tensor, budget: Tensor) -> Tensor:
    """The `budget` allowed places of each row with the highest scores, bool [rows, places].

    Args:
        scores: [rows, places].
        allowed: bool [rows, places]; others are never taken.
        budget: [rows].
    """
    order = scores.masked_fill(~allowed, float("-inf")).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    return (rank < budget[:, None]) & allowed


def evenly(allowed: Tensor, budget: Tensor) -> Tensor:
    """`budget` allowed places of each row at even distances, the first one included, bool [rows, places]."""
    count = allowed.sum(1, keepdim=True)
    place = allowed.cumsum(1) - 1
    steps = torch.minimum(budget[:, None], count)
    size = count.clamp_min(1)
    return allowed & (place * steps // size > (place - 1) * steps // size)
