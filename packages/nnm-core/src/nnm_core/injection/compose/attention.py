"""Where a question looks: its attention on every token of a board, noted while it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnm_core.injection.compose.board import Board


class QuestionAttention:
    """An observer that sums the attention of the question's tokens on each place.

        a(j) = mean_{l >= first layer, h} sum_{t in question} softmax_j(q_{l,h,t} k_{l,h,j} / sqrt d)

    The first layers look at neighbours and at sinks rather than for content; they are left out.

    Args:
        board: what is read.
        first_share: the layers below this share of all are left out.
    """

    def __init__(self, board: Board, first_share: float = 1 / 3) -> None:
        self._board = board
        self._first = int(board.model.layers * first_share)
        self._sums: list[Tensor] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, seen: Tensor, kwargs: dict[str, Any]) -> None:
        """See `nnm_core.injection.compose.board.Observer`."""
        if layer < self._first:
            return
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        rows, heads, tokens, width = query.shape
        grouped = query.reshape(rows, key.shape[1], -1, tokens, width)  # query heads of one key head together
        logits = torch.einsum("rgatd,rgjd->rgatj", grouped, key).float() * scaling
        if kwargs.get("softcap"):
            logits = kwargs["softcap"] * torch.tanh(logits / kwargs["softcap"])
        logits = logits.masked_fill(~seen[:, None, None], torch.finfo(logits.dtype).min)
        self._sums.append(torch.einsum("rgatj,rt->rj", logits.softmax(-1), self.weights) / heads)

    @property
    def weights(self) -> Tensor:
        """1 for tokens of the question, 0 for others and for the repeats that fill up short rows [rows, tokens]."""
        positions = self._board.positions(self._board.unread)
        asked = positions >= self._board.question[:, None]
        asked[:, 1:] &= positions[:, 1:] != positions[:, :-1]
        return asked.float()

    def scores(self) -> Tensor:
        """float32 [rows, places]."""
        return torch.stack(self._sums).mean(0)[:, : self._board.ids.shape[1]]


def question_attention(board: Board, first_share: float = 1 / 3) -> Tensor:
    """Read the question over the board as it is; its attention on each place, float32 [rows, places]."""
    looked = QuestionAttention(board, first_share)
    board.compute(torch.zeros_like(board.unread), observe=looked)
    return looked.scores()
