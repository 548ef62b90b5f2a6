"""One process a GPU (torchrun), or a single process."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


class Ranks:
    """This process among the others; without torchrun's environment it is alone."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = True
        self._small: dist.ProcessGroup | None = None
        if self.world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
            self._small = dist.new_group(backend="gloo")

    def minimum(self, values: Sequence[float]) -> list[float]:
        """The element-wise minimum over all ranks, exchanged on the CPU so that no GPU waits for it."""
        shared = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(shared, dist.ReduceOp.MIN, group=self._small)
        return [float(value) for value in shared]

    def average_gradients(self, model: nn.Module) -> None:
        """Average all gradients over the ranks, in one exchange."""
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        torch._foreach_copy_(
            gradients,
            [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)],
        )
