"""KV-Embedding (arXiv 2601.01046): one vector a text out of one forward pass of a frozen decoder.

In the chosen layers S the keys and values of the row's last token n, of the same layer and the same pass, are put in
front of all others as one more slot that every token sees, with a logit bias b:

    K' = [k_n ; K],   V' = [v_n ; V],   logits of the slot + b            (for l in S)

so that early tokens of a causal model take in what the last one, the compression of the text, has gathered. Pooling:
v = normalize((h_n + mean_i h_i) / 2) on the final layer. The key keeps the rotation of its own position n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from nnm_core.embedding.prompts import EmbeddingPrompt, EmbeddingRole, Window
from nnm_core.embedding.settings import EmbeddingSettings, default_layers
from nnm_core.errors import InvalidInputError, UnsupportedModelError
from nnm_core.model.attention import Attend, intervene
from nnm_core.model.batching import padded_batches, tokens_per_pass

Progress = Callable[[int], None]
"""Called after every batch with the number of texts that were finished by it."""


class EncoderModel(Protocol):
    """What this module needs of a loaded model; `nnm_core.model.load.LoadedModel` is one."""

    @property
    def hf(self) -> PreTrainedModel:
        """The decoder, in eval mode."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its fast tokenizer."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        ...

    @property
    def context_limit(self) -> int:
        """Largest number of positions."""
        ...

    @property
    def intervenes(self) -> bool:
        """Whether its attention goes through `nnm_core.model.attention`."""
        ...


class KVEmbedder:
    """Raw (not yet whitened) dense vectors of texts.

    Args:
        model: the loaded model; `nnm_core.model.attention.install` was called on it if it re-routes.
        settings: see `EmbeddingSettings`.

    Raises:
        UnsupportedModelError: re-routing was asked of a model whose attention cannot be intercepted.
        InvalidInputError: a layer that the model does not have.
    """

    def __init__(self, model: EncoderModel, settings: EmbeddingSettings | None = None) -> None:
        self.settings = settings or EmbeddingSettings()
        self._model = model
        self._body = model.hf.base_model
        config = model.hf.config.get_text_config()
        self._depth = int(config.num_hidden_layers)
        self.dim = int(config.hidden_size)
        chosen = default_layers(self._depth) if self.settings.layers is None else self.settings.layers
        self.layers = () if self.settings.route == "off" else chosen
        self._check()
        self.prompt = EmbeddingPrompt(model.tokenizer, self.settings.prompt)
        self.window = min(self.settings.window or model.context_limit, model.context_limit)

    def _check(self) -> None:
        wrong = [layer for layer in self.layers if not 0 <= layer < self._depth]
        if wrong or not -self._depth <= self.settings.hidden_layer < self._depth:
            raise InvalidInputError(
                f"The model has layers 0 to {self._depth - 1}; the settings name {wrong or self.settings.hidden_layer}."
            )
        if self.layers and not self._model.intervenes:
            raise UnsupportedModelError(
                "Re-routing needs attention that goes through transformers' AttentionInterface; this model's does not.",
                hint='Use EmbeddingSettings(route="off").',
            )
        kind = str(getattr(self._model.hf.config, "_attn_implementation", ""))
        if self.layers and ("flash" in kind or "flex" in kind):
            raise UnsupportedModelError(
                f"Re-routing biases a logit, which the attention implementation {kind!r} cannot do.",
                hint='Load the model with attention="sdpa", or use EmbeddingSettings(route="off").',
            )

    def encode(
        self, texts: Sequence[str], role: EmbeddingRole = "context", *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Raw pooled vectors, float32 [len(texts), dim], each of unit length (shorter where windows were averaged).

        The result for a text does not depend on what else is in the list beyond floating-point noise (1e-5 in fp32).
        Texts longer than the window are split; their vector is the mean of their windows' vectors, weighted by tokens.

        Args:
            texts: any strings; an empty one gets the vector of the bare instruction.
            role: ``context`` for memories, ``query`` for queries.
            progress: called after each batch with the number of rows done in it.
        """
        windows = self.prompt.windows(texts, role, window=self.window)
        total = np.zeros((len(texts), self.dim), dtype=np.float64)
        weight = np.zeros((len(texts), 1), dtype=np.float64)
        for batch in batches(windows, min(self.settings.tokens_per_batch, tokens_per_pass(self._model.device))):
            vectors = self._encode_batch(batch).double().cpu().numpy()
            for row, vector in zip(batch, vectors, strict=True):
                total[row.text] += row.weight * vector
                weight[row.text] += row.weight
            if progress is not None:
                progress(len(batch))
        return cast(NDArray[np.float32], (total / np.maximum(weight, 1)).astype(np.float32))

    def hidden_states(self, batch: Sequence[Window]) -> tuple[Tensor, ...]:
        """Residual states, one [rows, longest, dim] a layer boundary (embedding first), re-routing active."""
        return self._forward(batch, all_layers=True)

    def last_states(self, batch: Sequence[Window]) -> Tensor:
        """Final states [rows, longest, dim], behind the last norm: what a language-model head reads."""
        return self._forward(batch, all_layers=False)[-1]

    @torch.inference_mode()
    def _encode_batch(self, batch: Sequence[Window]) -> Tensor:
        layer = self.settings.hidden_layer % self._depth
        early = layer != self._depth - 1
        states = self._forward(batch, all_layers=early)
        return pool(states[layer + 1] if early else states[-1], batch, self.settings)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Window], *, all_layers: bool) -> tuple[Tensor, ...]:
        ids, lengths = collate(batch, self._model.device)
        mask = torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "use_cache": False,
            "output_hidden_states": all_layers,
        }
        source: ReRoute | None = None
        if self.settings.route == "two-pass":
            source = ReRoute(self.layers, lengths - 1, bias=self.settings.bias, record_only=True)
            with intervene(source):
                self._body(**arguments)
        with self._routing(lengths, source):
            output = self._body(**arguments)
        return tuple(output.hidden_states) if all_layers else (output.last_hidden_state,)

    def _routing(self, lengths: Tensor, source: ReRoute | None) -> AbstractContextManager[None]:
        if not self.layers:
            return nullcontext()
        return intervene(ReRoute(self.layers, lengths - 1, bias=self.settings.bias, source=source))


class ReRoute:
    """The attention intervention: one more slot with the last token's key and value in the chosen layers.

    Args:
        layers: where to add the slot.
        last: index of each row's last real token, [rows].
        bias: added to the slot's logits.
        source: a recorded first pass to take keys and values from (two-pass variant); None takes this pass's own.
        record_only: note the last token's key and value and leave the attention as it is.
    """

    def __init__(
        self,
        layers: Sequence[int],
        last: Tensor,
        *,
        bias: float,
        source: ReRoute | None = None,
        record_only: bool = False,
    ) -> None:
        self._layers = frozenset(layers)
        self._last = last
        self._bias = bias
        self._source = source
        self._record_only = record_only
        self._recorded: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int, tuple[Tensor | None, Tensor]] = {}

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
        """See `nnm_core.model.attention.AttentionIntervention`."""
        layer = int(cast(int, module.layer_idx))
        if layer not in self._layers:
            return attend(module, query, key, value, attention_mask, **kwargs)
        slot = (_at(key, self._last), _at(value, self._last))
        if self._record_only:
            self._recorded[layer] = slot
            return attend(module, query, key, value, attention_mask, **kwargs)
        if self._source is not None:
            slot = self._source._recorded[layer]
        key, value = torch.cat((slot[0], key), dim=2), torch.cat((slot[1], value), dim=2)
        mask = self._with_slot(attention_mask, query, key.shape[2] - 1)
        return attend(module, query, key, value, mask, **kwargs)

    def _with_slot(self, mask: Tensor | None, query: Tensor, keys: int) -> Tensor:
        """The additive float mask [rows or 1, 1, queries, 1 + keys]; made once for the layers that share a mask."""
        known = self._masks.get(id(mask))
        if known is not None and known[0] is mask:
            return known[1]
        queries = query.shape[2]
        floor = torch.finfo(query.dtype).min
        if mask is None:
            allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
        elif mask.dtype == torch.bool:
            allowed = mask[..., :keys]
        if mask is None or mask.dtype == torch.bool:
            body = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device).masked_fill_(~allowed, floor)
        else:
            body = mask[..., :keys].to(query.dtype)
        slot = torch.full_like(body[..., :1], self._bias)
        made = torch.cat((slot, body), dim=-1)
        self._masks[id(mask)] = (mask, made)
        return made


def pool(states: Tensor, batch: Sequence[Window], settings: EmbeddingSettings) -> Tensor:
    """normalize((h_last + mean(h)) / 2) over each row's real tokens, or one of its halves.

    Args:
        states: [rows, longest, dim].
        batch: the rows, for their lengths and where their text lies.
        settings: for `pooling` and `mean_over`.

    Returns:
        float32 [rows, dim], unit length.
    """
    states = states.float()
    places = torch.arange(states.shape[1], device=states.device)[None, :]
    stop = torch.tensor([len(row.ids) for row in batch], device=states.device)
    last = states[torch.arange(len(batch), device=states.device), stop - 1]
    inside = places < stop[:, None]
    if settings.mean_over == "text":
        texts = torch.tensor([(row.start, row.stop) for row in batch], device=states.device)
        within = (places >= texts[:, :1]) & (places < texts[:, 1:])
        inside = torch.where(within.any(dim=1, keepdim=True), within, inside)
    share = inside.float() / inside.sum(dim=1, keepdim=True)
    # Where instead of times zero: what stands at padded places may be anything, not-a-number included.
    mean = torch.einsum("rt,rtd->rd", share, torch.where(inside[..., None], states, 0.0))
    pooled = {"last+mean": (last + mean) / 2, "last": last, "mean": mean}[settings.pooling]
    return nn.functional.normalize(pooled, dim=-1)


def batches(windows: Sequence[Window], tokens_per_batch: int) -> Iterator[list[Window]]:
    """The rows in padded batches within the budget (`padded_batches`)."""
    for batch in padded_batches([len(window.ids) for window in windows], tokens_per_batch):
        yield [windows[index] for index in batch]


def collate(batch: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids [rows, longest] and lengths [rows]; padding repeats id 0, which no mask lets through."""
    lengths = torch.tensor([len(row.ids) for row in batch])
    ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
    for index, row in enumerate(batch):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
    return ids.to(device), lengths.to(device)


def _at(states: Tensor, places: Tensor) -> Tensor:
    """[rows, heads, tokens, dim] at one token a row -> [rows, heads, 1, dim]."""
    index = places.view(-1, 1, 1, 1).expand(-1, states.shape[1], 1, states.shape[3])
    return states.gather(2, index)
