"""Fewer tokens in any of the codecs that keep keys and values: ``int8:keep=0.5``.

What is kept is decided without a question (KVzip, arXiv 2505.23416, section 3): the model is asked to repeat the memory
behind it, and a token counts as much as the repetition attends to it: the largest weight over heads and repeated
tokens, summed over layers. Kept tokens keep their positions; the others leave gaps, in the positions but not in the
cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnm_core.errors import InvalidInputError
from nnm_core.model.attention import Attend, intervene
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import place
from nnm_core.states.codecs.base import TYPICAL_TOKENS, Codec, Reader, token_ids, token_tensor
from nnm_core.states.state import State

CUE = "Repeat the previous context exactly:\n\n"
_INDEX_BYTES = 4


class EvictingCodec:
    """A share of the tokens in another codec, chosen by reconstruction; costs one more pass over the text at ingest."""

    lossless = False
    whole = False
    residual_layer: int | None = None

    def __init__(self, name: str, inner: Codec, share: float) -> None:
        """Args: share: of a memory's tokens that are kept, more than 0 and less than 1."""
        if not 0 < share < 1:
            raise InvalidInputError(f"keep is {share} in {name!r}.", hint="Keep a share between 0 and 1.")
        self.name, self.inner, self.share = name, inner, share

    def check(self, model: LoadedModel) -> None:
        """See `Codec`. Needs movable rotary positions, attention over all tokens, and a seam to look on."""
        self.inner.check(model)
        config = model.hf.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ())
        windowed = bool(kinds - {"full_attention"}) or bool(getattr(config, "sliding_window", None) and not kinds)
        if model.positions.family != "rotary" or not model.intervenes or windowed:
            raise InvalidInputError(
                f"Tokens of {model.name} cannot be left out: its positions or its attention do not allow gaps.",
                hint=f"Use codec={self.inner.name!r}.",
            )

    def bytes_per_token(self, model: LoadedModel, tokens: int = TYPICAL_TOKENS) -> float:
        """See `Codec`."""
        kept = self.count(tokens)
        inner = self.inner.bytes_per_token(model, kept) * kept / tokens
        return inner + 4.0 * (tokens - kept) / tokens + _INDEX_BYTES * kept / tokens

    def count(self, tokens: int) -> int:
        """How many of so many tokens are kept."""
        return max(1, math.ceil(self.share * tokens))

    def choose(self, state: State, reader: Reader) -> State:
        """`state` with the tokens that are kept."""
        scores = importance(reader.model, state, reader)
        kept = scores.topk(self.count(len(state.token_ids))).indices.sort().values
        return state.only(kept)

    def encode(self, state: State) -> dict[str, Tensor]:
        """All token ids and ``kept`` [kept] int32, then what the inner codec makes of the kept tokens."""
        if state.kept is None:
            raise InvalidInputError(f"The codec {self.name!r} needs a state whose tokens have been chosen.")
        ids = tuple(state.token_ids[index] for index in state.kept.tolist())
        inner = self.inner.encode(State(ids, state.start, state.left, state.layers))
        return {**inner, "token_ids": token_tensor(state), "kept": state.kept.to(torch.int32).cpu()}

    def decode(
        self, tensors: Mapping[str, Tensor], manifest: Mapping[str, str], reader: Reader | None = None
    ) -> State | None:
        """The kept tokens' keys and values, and where they belong."""
        kept = tensors["kept"].long()
        inner = self.inner.decode({**tensors, "token_ids": tensors["token_ids"][kept]}, manifest, reader)
        return None if inner is None else inner.among(token_ids(tensors), kept, self.name)


@torch.inference_mode()
def importance(model: LoadedModel, state: State, reader: Reader) -> Tensor:
    """How much repeating the memory attends to each of its tokens, [tokens].

    Raises:
        InvalidInputError: the state was not captured behind the reader's left context.
    """
    left = reader.left()
    if left.name != state.left:
        raise InvalidInputError("The state belongs to another left context.")
    cue = model.tokenizer(CUE, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*cue, *state.token_ids]], device=model.device)
    cache = PlacedCache(model.layers, capacity=left.length + len(state.token_ids) + ids.shape[1])
    left.copy_into(cache)
    place(model, state, left.length).copy_into(cache)
    watch = _Watch(left.length, left.length + len(state.token_ids), len(cue))
    with intervene(watch):
        model.hf.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return torch.stack(watch.scores).sum(0)


@dataclass
class _Watch:
    """Looks at the attention of the repeated tokens to columns ``start .. stop``; changes nothing."""

    start: int
    stop: int
    cue: int
    scores: list[Tensor] = field(default_factory=list)

    def __call__(
        self,
        attend: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        repeated = query[:, :, self.cue :].float()
        heads = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float()
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        logits = repeated @ heads.transpose(2, 3) * scaling
        columns = torch.arange(key.shape[2], device=key.device)
        late = columns[None, :] > columns[-repeated.shape[2] :, None]
        weights = logits.masked_fill_(late, -torch.inf).softmax(-1)
        self.scores.append(weights[0, :, :, self.start : self.stop].amax((0, 1)))
        return attend(module, query, key, value, attention_mask, **kwargs)
