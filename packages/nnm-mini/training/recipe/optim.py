"""Muon for the matrices, AdamW for the embedding and the gains.

Muon: momentum, then five Newton-Schulz steps towards the nearest orthogonal matrix (K. Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon), scaled by 0.2 * sqrt(largest side) as in "Muon is scalable"
(arXiv:2502.16982).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from recipe.model import Reader

_MOMENTUM = 0.95


def orthogonal(gradient: Tensor, momentum: Tensor) -> Tensor:
    """Update directions of a stack of equal-shaped matrices [n, rows >= columns, columns]; `momentum` changes in
    place."""
    momentum.lerp_(gradient, 1 - _MOMENTUM)
    x = gradient.lerp(momentum, _MOMENTUM).bfloat16().mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    direction: Tensor = x.mT.float()
    return direction


class Optimiser:
    """Both optimisers behind one `step`."""

    def __init__(self, model: Reader, settings: dict[str, Any]) -> None:
        self.model, self.settings = model, settings
        self.groups: dict[tuple[int, int], list[tuple[Tensor, bool]]] = {}
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and name != "embedding":
                rows, columns = parameter.shape
                key = (max(rows, columns), min(rows, columns))
                self.groups.setdefault(key, []).append((parameter, rows < columns))
        device = model.embedding.device
        self.momenta = {key: torch.zeros(len(group), *key, device=device) for key, group in self.groups.items()}
        gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        self.adam = torch.optim.AdamW(
            [
                {"params": [model.embedding], "lr": settings["embedding_rate"]},
                {"params": gains, "lr": settings["gain_rate"]},
            ],
            betas=(0.9, 0.95),
            eps=1e-9,
            weight_decay=0.0,
            fused=device.type == "cuda",
        )
        self.rates = [group["lr"] for group in self.adam.param_groups]

    @torch.no_grad()
    def step(self, factor: float) -> Tensor:
        """One update at `factor` times the base rates; returns the gradient norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"], foreach=True)
        rate = self.settings["matrix_rate"] * factor
        for key, group in self.groups.items():
            stacked = torch.stack([p.grad.T if turned else p.grad for p, turned in group if p.grad is not None])
            updates = orthogonal(stacked, self.momenta[key])
            parameters = [parameter for parameter, _ in group]
            changes = [updates[i].T if turned else updates[i] for i, (_, turned) in enumerate(group)]
            torch._foreach_mul_(parameters, 1 - rate * self.settings["decay"])
            torch._foreach_add_(parameters, changes, alpha=-rate * 0.2 * math.sqrt(key[0]))
        for settings, base in zip(self.adam.param_groups, self.rates, strict=True):
            settings["lr"] = base * factor
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        for key, value in state["momenta"].items():
            self.momenta[key].copy_(value)
        self.adam.load_state_dict(state["adam"])
