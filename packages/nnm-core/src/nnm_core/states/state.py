"""The state of a run of tokens: what one reading of them leaves behind in the model."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from nnm_core.states.cache import PlacedCache

LayerStates = tuple[Tensor, Tensor]
ROOT = ""


def chain(left: str, token_ids: Sequence[int]) -> str:
    """Name of the context that is `left` followed by `token_ids`: SHA-256 over both, hexadecimal.

    Segments are hashed as they are cut, so the same tokens cut differently have different names: a miss, never a
    wrong state.
    """
    return hashlib.sha256(left.encode() + b"|" + struct.pack(f"<{len(token_ids)}q", *token_ids)).hexdigest()


@dataclass(frozen=True)
class Origin:
    """How a state was had, for the receipt.

    Attributes:
        codec: name of the form that it was stored in.
        lossless: whether it gives the same greedy tokens as reading.
        nbytes: stored bytes that were read for it.
        recomputed: tokens of which all or some layers were computed again.
        first_layer: layers below this one have no state; there the tokens are masked.
        fused: it was computed behind the memory's neighbours (`nnm_core.fusing`), and is meant for composing only.
    """

    codec: str = "native"
    lossless: bool = True
    nbytes: int = 0
    recomputed: int = 0
    first_layer: int = 0
    fused: bool = False


NATIVE = Origin()


@dataclass(frozen=True)
class State:
    """Keys and values of some tokens, computed behind one left context.

    Attributes:
        token_ids: the tokens.
        start: position of the first of them when the state was computed.
        left: name (`chain`) of the left context.
        layers: for each layer keys and values, [kv_heads, tokens, head_dim], in the model's compute type. Keys are
            as they leave the projection and any QK norm, before rotation.
        residual: what a codec has asked for: the residual stream before one of the layers, less the one before the
            first, [tokens, width].
        origin: how it was had.
        kept: where `layers` hold some of the tokens only, which ones, in order [kept]; None for all.
    """

    token_ids: tuple[int, ...]
    start: int
    left: str
    layers: tuple[LayerStates, ...]
    residual: Tensor | None = None
    origin: Origin = NATIVE
    kept: Tensor | None = None

    @property
    def chain(self) -> str:
        """Name of the context that ends with these tokens."""
        return chain(self.left, self.token_ids)

    def head(self, length: int) -> State:
        """The state of the first `length` tokens: causal attention lets no later token into it."""
        if length == len(self.token_ids):
            return self
        kept = None if self.kept is None else self.kept[self.kept < length]
        rows = length if kept is None else len(kept)
        layers = tuple((key[:, :rows], value[:, :rows]) for key, value in self.layers)
        residual = None if self.residual is None else self.residual[:length]
        return State(self.token_ids[:length], self.start, self.left, layers, residual, self.origin, kept)

    def only(self, kept: Tensor) -> State:
        """Keys and values of the tokens `kept` (indices in order) alone; ids and positions stay those of all."""
        layers = tuple((key[:, kept.to(key.device)], value[:, kept.to(value.device)]) for key, value in self.layers)
        return replace(self, layers=layers, residual=None, kept=kept.cpu())

    def among(self, token_ids: tuple[int, ...], kept: Tensor, codec: str) -> State:
        """This state, as that of the tokens `kept` among all `token_ids`, kept by `codec`."""
        # An inner codec that loads without work counts no bytes of its own.
        nbytes = self.origin.nbytes or self.nbytes
        origin = replace(self.origin, codec=codec, lossless=False, nbytes=nbytes)
        return replace(self, token_ids=token_ids, kept=kept, origin=origin)

    def as_fused(self) -> State:
        """This state, known as one that was computed behind the memory's neighbours."""
        return replace(self, origin=replace(self.origin, fused=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


@dataclass(frozen=True)
class PlacedState:
    """Keys and values as the attention reads them, at fixed positions: what is copied into a cache.

    Attributes:
        name: `chain` of the context that ends with these tokens.
        length: number of tokens.
        layers: for each layer rotated keys and values, [kv_heads, tokens, head_dim]; of fewer tokens where some were
            left out.
        origin: how it was had.
        skipped: how many were left out.
    """

    name: str
    length: int
    layers: tuple[LayerStates, ...]
    origin: Origin = NATIVE
    skipped: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)

    def copy_into(self, cache: PlacedCache) -> None:
        """Copy the state behind what `cache` holds."""
        block = one_block(self.layers)
        if block is not None and not self.skipped:
            at, tokens = cache.length, self.layers[0][0].shape[1]
            room = cache.room(0, len(block), at, tokens)
            if room is not None:
                room.copy_(block[:, :, :, :tokens])
                cache.advance(at + tokens)
                return
        for layer, (key, value) in zip(cache.placed, self.layers, strict=True):
            layer.append(key[None], value[None])
            layer.skipped += self.skipped


def one_block(layers: Sequence[LayerStates]) -> Tensor | None:
    """Some layers as one tensor [layers, 2, kv_heads, tokens, head_dim], without a copy.

    None where they do not lie one behind the other in one storage, as the store writes and maps them. Of a state that
    was cut to its first tokens the view shows all tokens, the surplus ones last.
    """
    if not layers:
        return None
    first = layers[0][0]
    shape, dtype, strides = first.shape, first.dtype, first.stride()
    heads, tokens, dim = shape
    stored = strides[0] // dim if heads > 1 else tokens  # tokens of the uncut state
    size = heads * stored * dim
    if strides[heads == 1 :] != (stored * dim, dim, 1)[heads == 1 :]:
        return None
    step, address = size * first.element_size(), first.data_ptr()
    for tensor in (tensor for pair in layers for tensor in pair):
        if tensor.data_ptr() != address or tensor.shape != shape or tensor.dtype != dtype or tensor.stride() != strides:
            return None
        address += step
    # Addresses one behind the other may still be those of several storages.
    if first.storage_offset() * first.element_size() + 2 * len(layers) * step > first.untyped_storage().nbytes():
        return None
    whole = (2 * size, size, stored * dim, dim, 1)
    return first.as_strided((len(layers), 2, heads, stored, dim), whole, first.storage_offset())
