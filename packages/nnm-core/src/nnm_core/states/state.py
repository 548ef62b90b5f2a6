"""The state of a run of tokens: what one reading of them leaves behind in the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LayerStates = tuple[Tensor, Tensor]
ROOT = ""


def chain(left: str, token_ids: Sequence[int]) -> str:
    """Name of the context that is `left` followed by `token_ids`: SHA-256 over both, hexadecimal.

    Segments are hashed as they are cut, so the same tokens cut differently have different names: a miss, never a
    wrong state.
    """
    return hashlib.sha256(left.encode() + b"|" + np.asarray(token_ids, dtype="<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class State:
    """Keys and values of some tokens, computed behind one left context.

    Attributes:
        token_ids: the tokens.
        start: position of the first of them when the state was computed.
        left: name (`chain`) of the left context.
        layers: for each layer keys and values, [kv_heads, tokens, head_dim], in the model's compute type. Keys are
            as they leave the projection and any QK norm, before rotation.
    """

    token_ids: tuple[int, ...]
    start: int
    left: str
    layers: tuple[LayerStates, ...]

    @property
    def chain(self) -> str:
        """Name of the context that ends with these tokens."""
        return chain(self.left, self.token_ids)

    def head(self, length: int) -> State:
        """The state of the first `length` tokens: causal attention lets no later token into it."""
        if length == len(self.token_ids):
            return self
        layers = tuple((key[:, :length], value[:, :length]) for key, value in self.layers)
        return State(self.token_ids[:length], self.start, self.left, layers)

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
        layers: for each layer rotated keys and values, [kv_heads, tokens, head_dim].
    """

    name: str
    length: int
    layers: tuple[LayerStates, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)
