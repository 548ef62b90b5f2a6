"""CacheBlend: the tokens whose values are furthest from what reading would give, as seen in an early layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.repair import Repair, best


@dataclass(frozen=True)
class Blend(Repair):
    """CacheBlend (Yao et al. 2025, arXiv 2405.16444): high-KV-deviation tokens.

    All tokens pass through the layers before `check_layer`, whose fresh values V' are compared with the stored ones:
    deviation(t) = ||V'_t - V_t||^2 over heads and dimensions. The tokens with the largest deviation are then computed
    again through all layers. Up to the check layer every token keeps its fresh states.

    Attributes:
        check_layer: the layer in which values are compared; the paper's implementation uses the second, 1.
    """

    name: str = "blend"
    check_layer: int = 1

    def choose(self, board: Board) -> Tensor:
        """See `Repair`."""
        layer = min(self.check_layer, board.model.layers - 1)
        width = board.ids.shape[1]
        board.cache.placed[layer].wait()
        values = board.cache.placed[layer].values
        assert values is not None  # a board with composed memories has states in every layer
        before = values[:, :, :width].clone()
        allowed = board.mask_of(board.composed())
        board.compute(allowed, stop_before=layer)
        moved = (values[:, :, :width].float() - before.float()).square().sum((1, 3))
        return best(torch.nan_to_num(moved), allowed, self.budget(board))
