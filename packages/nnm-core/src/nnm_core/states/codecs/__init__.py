"""How a state lies on disk, one class a file; `make_codec` finds them by name."""

from nnm_core.states.codecs.base import Codec, Reader, Shapes, expectation, manifest_of, shapes_of
from nnm_core.states.codecs.evict import EvictingCodec
from nnm_core.states.codecs.integers import IntegerCodec, IntegerSettings
from nnm_core.states.codecs.native import NativeCodec
from nnm_core.states.codecs.registry import CODECS, DEFAULT, make_codec
from nnm_core.states.codecs.residual import ResidualCodec
from nnm_core.states.codecs.tokens import TokensCodec

__all__ = [
    "CODECS",
    "DEFAULT",
    "Codec",
    "EvictingCodec",
    "IntegerCodec",
    "IntegerSettings",
    "NativeCodec",
    "Reader",
    "ResidualCodec",
    "Shapes",
    "TokensCodec",
    "expectation",
    "make_codec",
    "manifest_of",
    "shapes_of",
]
