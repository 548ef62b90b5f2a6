"""How strongly, and in which layers, a prompt's memories are felt by what is read and written behind them.

The attention seam scales what the question and the answer take from the memories' positions:

* ``by="attention"``: the weight of these positions before normalisation, ``exp(q.k / sqrt(d)) * strength``, that is
  ``log(strength)`` added to their logits; at 0 they are invisible.
* ``by="value"``: their values, ``v * strength``; the attention stays spent on them.

Memories see each other, and text between them, unscaled; so their states are the same with any settings, and reading
(``mode="read"``) with the same settings gives the same tokens as injecting. In layers outside of `layers` the positions
are masked. With the default settings nothing intervenes and the ordinary path is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnm_core.injection.plan import Plan
from nnm_core.injection.settings import InjectionSettings
from nnm_core.model.attention import Attend, intervene
from nnm_core.model.load import LoadedModel


@dataclass(frozen=True)
class Span:
    """Positions of one memory, and the first layer in which it has a state at all."""

    start: int
    end: int
    first_layer: int = 0


@dataclass
class Scaled:
    """An `AttentionIntervention` that scales `spans` for every query behind the last of them."""

    spans: tuple[Span, ...]
    settings: InjectionSettings
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @property
    def start(self) -> int:
        """The first position that feels the memories scaled."""
        return max(span.end for span in self.spans)

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
        """Attend with the spans scaled or masked."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module.__getattr__ is typed Tensor | Module
        first = key.shape[2] - query.shape[2]  # position of the first query
        hidden = self.settings.layers is not None and layer not in self.settings.layers
        blind = tuple(span for span in self.spans if layer < span.first_layer and key.shape[2] > span.end)
        late = key.shape[2] > self.start
        if blind or (late and (hidden or (self.settings.by == "attention" and self.settings.strength != 1))):
            attention_mask = self._mask(query, key.shape[2], first, attention_mask, blind, late=late, hidden=hidden)
            kwargs["is_causal"] = False
        if not late or hidden or self.settings.by != "value" or self.settings.strength == 1:
            return attend(module, query, key, value, attention_mask, **kwargs)
        scaled = value.clone()
        for span in self.spans:
            scaled[:, :, span.start : span.end] *= self.settings.strength
        output, weights = attend(module, query, key, scaled, attention_mask, **kwargs)
        early = self.start - first
        if early > 0:  # queries of the memories themselves, read in the same pass
            plain, _ = attend(module, query, key, value, attention_mask, **kwargs)
            output = torch.cat([plain[:, :early], output[:, early:]], dim=1)
        return output, weights

    def _mask(
        self,
        query: Tensor,
        keys: int,
        first: int,
        mask: Tensor | None,
        blind: Sequence[Span],
        *,
        late: bool,
        hidden: bool,
    ) -> Tensor:
        """The additive mask of this pass, made once for all layers that are treated alike."""
        name = (query.shape[2], keys, None if mask is None else mask.data_ptr(), late, hidden, tuple(blind))
        if name not in self._masks:
            if self._masks and next(iter(self._masks))[:2] != name[:2]:
                self._masks.clear()  # those of an earlier pass
            self._masks[name] = self._made(query, keys, first, mask, blind, late=late, hidden=hidden)
        return self._masks[name]

    def _made(
        self,
        query: Tensor,
        keys: int,
        first: int,
        mask: Tensor | None,
        blind: Sequence[Span],
        *,
        late: bool,
        hidden: bool,
    ) -> Tensor:
        added = additive(mask, query, keys)
        floor = torch.finfo(query.dtype).min
        if late:
            rows = slice(max(0, self.start - first), None)
            for span in self.spans:
                columns = added[:, :, rows, span.start : span.end]
                if hidden or (self.settings.strength == 0 and self.settings.by == "attention"):
                    columns.fill_(floor)
                elif self.settings.by == "attention":
                    columns += math.log(self.settings.strength)
                    columns.clamp_(min=floor)
        for span in blind:
            added[:, :, max(0, span.end - first) :, span.start : span.end] = floor
        return added


def additive(mask: Tensor | None, query: Tensor, keys: int) -> Tensor:
    """`mask` as numbers to add, [batch or 1, 1, queries, keys], free to be written into; None stands for causal."""
    queries = query.shape[2]
    floor = torch.finfo(query.dtype).min
    if mask is None:
        where = torch.arange(keys, device=query.device)
        allowed = where[None, :] <= where[keys - queries :, None]
        mask = allowed[None, None]
    mask = mask[..., :keys]
    if mask.dtype != torch.bool:
        return mask.to(query.dtype, copy=True)
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, floor)


def scaled(plan: Plan, settings: InjectionSettings, model: LoadedModel) -> Scaled | None:
    """What has to intervene while `plan` is carried out and answered; None if nothing has to."""
    spans = tuple(
        Span(step.start, step.start + len(step.segment.ids), 0 if step.state is None else step.state.origin.first_layer)
        for step in plan.steps
        if step.segment.memory is not None
    )
    if not spans or (settings.felt_as_read(model.layers) and not any(span.first_layer for span in spans)):
        return None
    return Scaled(spans, settings)


def during(intervention: Scaled | None) -> AbstractContextManager[object]:
    """The block runs under `intervention`, if there is one."""
    return nullcontext() if intervention is None else intervene(intervention)
