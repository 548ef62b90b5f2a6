"""``residual-int8``: the original project's factorised storage.

Kept are the token ids and, in 8 bits, the difference between the residual stream before one layer and the static
embedding. The embedding is looked up again; the keys and values of the layers above are computed from the sum. The
layers below are computed from the token ids, or are left out and masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.model.load import LoadedModel
from nnm_core.states.codecs.base import TYPICAL_TOKENS, Reader, nbytes, shapes_of, token_ids, token_tensor
from nnm_core.states.codecs.quantise import Quantised, dequantise, quantise
from nnm_core.states.state import Origin, State
from nnm_core.states.upper import check_upper, read_above

Lower = Literal["recompute", "masked"]
_CHANNELS = 64


class ResidualCodec:
    """Width bytes a token, and the scales; decoding computes the layers above (and below) again.

    With ``lower="recompute"`` that costs as much as reading; with ``lower="masked"`` the memory is not seen in the
    layers below, which saves their part of the time and costs quality. Largest error: half a step of 8 bits in the
    residual stream, (max - min) / 255 / 2 of each 64 channels; what the layers above make of it is measured, not
    bounded.
    """

    lossless = False

    def __init__(self, name: str, layer: int | None, lower: Lower = "recompute") -> None:
        """Args: layer: before which the stream is kept; None takes the middle once the model is known (`check`)."""
        if lower not in ("recompute", "masked"):
            raise InvalidInputError(f"lower is {lower!r}.", hint="Use recompute or masked.")
        self.name = name
        self.lower = lower
        self.whole = lower == "recompute"
        self.residual_layer: int | None = layer

    def check(self, model: LoadedModel) -> None:
        """See `Codec`."""
        if self.residual_layer is None:
            self.residual_layer = max(1, model.layers // 2)
        check_upper(model, self.residual_layer)
        if self.lower == "masked" and not model.intervenes:
            raise InvalidInputError(
                f"The lower layers of {model.name} cannot be masked.", hint="Use lower=recompute, or another codec."
            )

    def bytes_per_token(self, model: LoadedModel, tokens: int = TYPICAL_TOKENS) -> float:
        """See `Codec`."""
        width = shapes_of(model).width
        return 4.0 + width + 4.0 * -(-width // _CHANNELS)

    def encode(self, state: State) -> dict[str, Tensor]:
        """``token_ids``, and ``delta.q``, ``delta.scale``, ``delta.zero`` in blocks of channels."""
        if state.residual is None:
            raise InvalidInputError(f"The codec {self.name!r} needs states that were captured with `residual_layer`.")
        missing = -state.residual.shape[1] % _CHANNELS
        filled = torch.nn.functional.pad(state.residual[None], (0, missing), mode="replicate")[0]
        found = quantise(filled.unflatten(1, (-1, _CHANNELS)), 2, 8)
        width = torch.tensor([state.residual.shape[1]], dtype=torch.int32)
        return {
            "token_ids": token_tensor(state),
            "delta.q": found.q,
            "delta.scale": found.scale,
            "delta.zero": found.zero,
            "width": width,
        }

    def decode(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str], reader: Reader | None = None
    ) -> State | None:
        """Compute the state again behind the left context, the layers above from the stored stream."""
        left = None if reader is None else reader.left()
        if reader is None or left is None or left.name != manifest["left"] or self.residual_layer is None:
            return None
        ids, size = token_ids(tensors), nbytes(tensors)
        # As integers they cross the bus in a quarter of the bytes.
        stored = Quantised(*(tensors[f"delta.{part}"].to(reader.model.device) for part in ("q", "scale", "zero")))
        delta = torch.empty(stored.q.shape, dtype=torch.float32, device=stored.q.device)
        dequantise(stored, delta, 2, 8)
        state = read_above(
            reader.model,
            ids,
            delta.flatten(1)[:, : int(tensors["width"])],
            layer=self.residual_layer,
            left=left,
            lower=self.lower == "recompute",
        )
        first = self.residual_layer if self.lower == "masked" else 0
        origin = Origin(self.name, lossless=False, nbytes=size, recomputed=len(ids), first_layer=first)
        return State(ids, state.start, state.left, state.layers, origin=origin)
