"""Codecs by name, with options behind a colon: ``int8``, ``residual-int8:layer=6,lower=masked``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from nnm_core.errors import InvalidInputError
from nnm_core.states.codecs.base import Codec
from nnm_core.states.codecs.evict import EvictingCodec
from nnm_core.states.codecs.integers import int4, int8
from nnm_core.states.codecs.native import NativeCodec
from nnm_core.states.codecs.residual import Lower, ResidualCodec
from nnm_core.states.codecs.tokens import TokensCodec

Options = dict[str, str]
Make = Callable[[str, Options], Codec]

DEFAULT = "native"


def _residual(name: str, options: Options) -> Codec:
    layer = options.pop("layer", "")
    if layer and not layer.isdecimal():
        raise InvalidInputError(f"layer is {layer!r} in {name!r}.", hint="Give the number of a layer.")
    return ResidualCodec(name, int(layer) if layer else None, cast("Lower", options.pop("lower", "recompute")))


CODECS: Mapping[str, Make] = {
    "native": lambda name, options: NativeCodec(),
    "int8": lambda name, options: int8(name),
    "int4": lambda name, options: int4(name),
    "residual-int8": _residual,
    "tokens": lambda name, options: TokensCodec(),
}


# Codecs that keep keys and values a token, and so can do with fewer tokens.
EVICTING = ("native", "int8", "int4")


def _share(spec: str, keep: str) -> float:
    try:
        return float(keep)
    except ValueError as error:
        raise InvalidInputError(f"keep is {keep!r} in {spec!r}.", hint="Keep a share between 0 and 1.") from error


def make_codec(spec: str = DEFAULT) -> Codec:
    """The codec of that name.

    Raises:
        InvalidInputError: no such codec or option.
    """
    name, _, rest = spec.partition(":")
    if name not in CODECS:
        raise InvalidInputError(f"There is no codec {name!r}.", hint=f"Use one of {', '.join(CODECS)}.")
    options = _options(spec, rest)
    keep = options.pop("keep", None) if name in EVICTING else None
    codec = CODECS[name](name if keep else spec, options)
    if keep is not None:
        codec = EvictingCodec(spec, codec, _share(spec, keep))
    if options:
        raise InvalidInputError(
            f"The codec {name!r} has no option {', '.join(options)}.", hint="See docs/how-to/codecs.md."
        )
    return codec


def _options(spec: str, rest: str) -> Options:
    options: Options = {}
    for part in filter(None, rest.split(",")):
        key, sign, value = part.partition("=")
        if not sign or not value or key in options:
            raise InvalidInputError(f"{spec!r} is not understood.", hint="Write name:option=value,option=value.")
        options[key] = value
    return options
