"""Numbers in 8 or 4 bits: blocks with a zero point and a scale, and back in a few passes over the whole stack.

Along one dimension of a tensor, `block` neighbours share ``zero = min`` and ``scale = (max - min) / levels``;
``q = round((x - zero) / scale)`` and ``x' = zero + q * scale``, so ``|x - x'| <= scale / 2``. Zero and scale are
stored in 16 bits, rounded so that the block's range stays inside. Four-bit numbers lie two a byte: the first half of
a block in the low bits, the second half in the high bits, so that unpacking writes two plain slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-8


@dataclass(frozen=True)
class Quantised:
    """Blocks of small integers.

    Attributes:
        q: uint8, [..., blocks, block or half of it, ...], the block's dimension at `dim`.
        scale, zero: float16 (float32 where that is too narrow), 1 at `dim`.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor


def quantise(blocked: Tensor, dim: int, bits: int) -> Quantised:
    """Quantise `blocked` along `dim`, all of whose numbers form one block; 4 bits need an even number of them."""
    levels = 2**bits - 1
    exact = blocked.float()
    low, high = exact.amin(dim, keepdim=True), exact.amax(dim, keepdim=True)
    kind = torch.float16 if float(exact.abs().max()) < 3e4 else torch.float32
    zero = _at_most(low, kind)
    scale = _at_least((high - zero.float()).clamp_min(_TINY * levels) / levels, kind)
    q = ((exact - zero.float()) / scale.float()).round_().clamp_(0, levels).to(torch.uint8)
    if bits == 4:
        first, second = q.chunk(2, dim)
        q = first | (second << 4)
    return Quantised(q.contiguous(), scale.contiguous(), zero.contiguous())


def dequantise(stored: Quantised, out: Tensor, dim: int, bits: int) -> None:
    """Write ``zero + q * scale`` into `out`, a blocked view of the tensor that is wanted, on the same device."""
    scale, zero = stored.scale.float(), stored.zero.float()
    if bits == 8:
        _scaled(stored.q, scale, zero, out)
        return
    first, second = out.chunk(2, dim)
    _scaled(stored.q & 15, scale, zero, first)
    _scaled(stored.q >> 4, scale, zero, second)


def _scaled(q: Tensor, scale: Tensor, zero: Tensor, out: Tensor) -> None:
    if out.dtype == torch.float32:  # on a CPU faster than one call with mixed types
        out.copy_(q).mul_(scale).add_(zero)
    else:  # computed in float32, rounded once
        torch.addcmul(zero, q, scale, out=out)


def _at_most(x: Tensor, kind: torch.dtype) -> Tensor:
    rounded = x.to(kind)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.float() > x, below, rounded)


def _at_least(x: Tensor, kind: torch.dtype) -> Tensor:
    rounded = x.to(kind)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.float() < x, above, rounded)
