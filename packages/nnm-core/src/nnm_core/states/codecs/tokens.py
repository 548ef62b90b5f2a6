"""``tokens``: nothing but the token ids; the state is computed when it is first wanted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nnm_core.model.load import LoadedModel
from nnm_core.states.capture import capture
from nnm_core.states.codecs.base import TYPICAL_TOKENS, Reader, nbytes, token_ids, token_tensor
from nnm_core.states.state import Origin, State


class TokensCodec:
    """Four bytes a token. Largest error: none, the very computation is repeated; loading costs as much as reading.

    What was computed stays in the tree of states in RAM as long as there is room, so the second use is a load.
    """

    name = "tokens"
    lossless = True
    whole = True
    residual_layer: int | None = None

    def check(self, model: LoadedModel) -> None:
        """Every model can read its tokens again."""

    def bytes_per_token(self, model: LoadedModel, tokens: int = TYPICAL_TOKENS) -> float:
        """See `Codec`."""
        return 4.0

    def encode(self, state: State) -> dict[str, Tensor]:
        """``token_ids`` [tokens] int32."""
        return {"token_ids": token_tensor(state)}

    def decode(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str], reader: Reader | None = None
    ) -> State | None:
        """Read the tokens behind the left context."""
        left = None if reader is None else reader.left()
        if reader is None or left is None or left.name != manifest["left"]:
            return None
        ids = token_ids(tensors)
        state = capture(reader.model, [ids], left)[0]
        origin = Origin(self.name, nbytes=nbytes(tensors), recomputed=len(ids))
        return State(ids, state.start, state.left, state.layers, origin=origin)
