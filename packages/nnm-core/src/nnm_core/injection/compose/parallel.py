"""APE: all memories at the same positions, with a sharper look at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose.base import Composed, Composition
from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.repair import board_refusal
from nnm_core.injection.plan import Plan, Step
from nnm_core.model.attention import Attend
from nnm_core.model.load import LoadedModel
from nnm_core.states.capture import place


@dataclass(frozen=True)
class Parallel:
    """Adaptive parallel encoding (Yang, Chen and Chen 2025, arXiv 2502.05431).

    Every memory stands at the same positions, those just before the text behind the memories, so that none is further
    from the question than the others. Attention to the memories C and to all else is computed apart and merged by the
    log-sum-exp of each, that of the memories with a temperature T below 1 and scaled by S:

        lse_C = S T log sum_{j in C} exp(q k_j / (T sqrt(d))),   weights within C: softmax(q k_j / (T sqrt(d)))

    which is one softmax over keys k_j / T with the bias (S T - 1) lse_C(T) on all of C. Nothing is computed again.

    Attributes:
        temperature: T, above 0; 1 leaves the weights within the memories as they are.
        scale: S, above 0.
    """

    temperature: float = 0.9
    scale: float = 0.9
    name: str = "parallel"

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.scale <= 0:
            raise InvalidInputError(
                f"temperature={self.temperature}, scale={self.scale}.", hint="Both are above 0; the paper uses 0.9."
            )

    def refusal(self, model: LoadedModel) -> str:
        """See `Composer`."""
        return board_refusal(model)

    def prefill(self, work: Composition) -> Composed:
        """See `Composer`."""
        board = Board.of_plan(work.model, side_by_side(work), work.room)
        logits = self.arrange(board)[0]
        board.cache.intervention = board.adjustment
        return Composed(board.cache, logits[0])

    @torch.inference_mode()
    def arrange(self, board: Board) -> tuple[Tensor, Tensor]:
        """Read the question on a board whose memories stand side by side: logits, and no place that was repaired."""
        width = board.ids.shape[1]
        columns = torch.zeros((len(board.ids), width + board.room), dtype=torch.bool, device=board.ids.device)
        columns[:, :width] = board.mask_of(board.spans)
        board.adjustment = Sharpened(columns, self.temperature, self.scale)
        nothing = torch.zeros_like(board.unread)
        return board.compute(nothing), nothing


def side_by_side(work: Composition) -> Plan:
    """The plan with all loaded memories at the same positions; one whose stored state is gone stays where it is."""
    steps = list(work.plan.steps)
    memories = [i for i, step in enumerate(steps) if step.segment.memory is not None and step.state is not None]
    end = max(steps[i].start + len(steps[i].segment.ids) for i in memories)
    start = end - max(len(steps[i].segment.ids) for i in memories)
    for index in memories:
        steps[index] = _moved(work, steps[index], start)
    return Plan(tuple(steps))


def _moved(work: Composition, step: Step, start: int) -> Step:
    stored = work.stored(step.segment)
    if stored is None or stored.origin.first_layer:
        return step
    return replace(step, state=place(work.model, stored, start))


@dataclass(frozen=True)
class Sharpened:
    """An `AttentionIntervention` that looks at some keys with another temperature and scale.

    Attributes:
        columns: which keys, bool [rows, places]; later ones are none of them.
        temperature, scale: see `Parallel`.
    """

    columns: Tensor
    temperature: float
    scale: float

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
        """See `nnm_core.model.attention.AttentionIntervention`."""
        length = key.shape[2]
        chosen = self.columns[:, None, None, :length]
        sharp = torch.where(chosen[:, :, 0, :, None], key / self.temperature, key)
        mask = _additive(attention_mask, query, length)
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        grouped = sharp.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = (query @ grouped.transpose(2, 3)).float() * scaling + mask.float()
        mass = logits.masked_fill(~chosen, float("-inf")).logsumexp(-1, keepdim=True)
        seen = mass > torch.finfo(mask.dtype).min / 2  # of a query before all memories nothing is scaled
        bias = torch.where(seen, (self.scale * self.temperature - 1.0) * mass, 0.0)
        return attend(module, query, sharp, value, mask + (bias * chosen).to(mask.dtype), **kwargs)


def _additive(mask: Tensor | None, query: Tensor, length: int) -> Tensor:
    """The mask as numbers to be added to logits; plain causal if there is none."""
    lowest = torch.finfo(query.dtype).min
    if mask is None:
        tokens = query.shape[2]
        future = torch.ones((tokens, length), dtype=torch.bool, device=query.device).triu(length - tokens + 1)
        return query.new_zeros((1, 1, tokens, length)).masked_fill(future, lowest)
    if mask.dtype == torch.bool:
        return query.new_zeros(mask.shape).masked_fill(~mask, lowest)
    return mask
