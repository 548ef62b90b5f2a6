"""Root mean square norms in one kernel each, for passes that are captured.

transformers writes a norm as eight operations; in a captured pass of few tokens launching them takes longer than their
work. A norm is replaced only for the length of the pass, and only if the fused one gives what it gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

_ROUNDING = 2.0**-6


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Let the norms of `model` that can be fused run in one kernel inside the block, on a GPU."""
    replaced = [module for module in model.modules() if _is_plain(module)]
    for module in replaced:
        module.forward = partial(_normed, module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _normed(module: nn.Module, hidden: Tensor) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)  # _is_plain has looked
    return rms_norm(hidden, weight.shape, weight, _epsilon(module))


def _epsilon(module: nn.Module) -> float | None:
    found = getattr(module, "variance_epsilon", None)
    return found if isinstance(found, float) else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a norm on a GPU is known, or found, to be the fused one."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and weight.is_cuda
    if not named or _epsilon(module) is None:
        return False
    known = getattr(module, "_nnm_plain", None)
    if not isinstance(known, bool):
        known = not torch.cuda.is_current_stream_capturing() and same_as_fused(module)
        module._nnm_plain = known  # type: ignore[assignment]  # a plain attribute, not a parameter
    return known


def same_as_fused(module: nn.Module) -> bool:
    """Whether a module gives ``weight * x / sqrt(mean(x^2) + epsilon)`` on a row of numbers."""
    weight = module.weight
    assert isinstance(weight, Tensor)  # it is a norm
    if weight.dim() != 1 or _epsilon(module) is None:
        return False
    row = torch.linspace(-2, 3, weight.shape[0], dtype=weight.dtype, device=weight.device)[None, None]
    own, fused = module(row).float(), _normed(module, row).float()
    return bool(((own - fused).abs() <= _ROUNDING * own.abs() + 1e-5).all())
