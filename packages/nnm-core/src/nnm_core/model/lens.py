"""The lens: the same weights seen through TransformerLens, with hooks on every activation.

The bridge of TransformerLens replaces modules, forces eager attention and registers hooks. So it gets a copy of the
module tree; the copy holds the very parameters of the fast view, so it costs no second set of weights and can never
drift from them. It serves residual capture, layer profiles and steering, and it is the independent oracle that the
fast view is tested against. Eager attention is quadratic in memory: long prompts belong into the fast view.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nnm_core.errors import ModelError
from nnm_core.model.positions import remove_deferral

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Called as hook(activation, hook=point); returns what replaces the activation, or None to leave it.
Hook = Callable[..., Tensor | None]


@dataclass(frozen=True)
class Lens:
    """A view of one model in which every activation has a name and can be read or replaced.

    Attributes:
        bridge: the `TransformerBridge`, for everything that is not wrapped here.
        layers: number of blocks.
        device: where token ids belong.
    """

    bridge: TransformerBridge
    layers: int
    device: torch.device

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits [tokens, vocabulary] of one row of token ids."""
        return self.run_with_hooks(token_ids, ())

    @torch.inference_mode()
    def residuals(self, token_ids: Sequence[int]) -> Tensor:
        """The residual stream [layers + 1, tokens, width]: before each block, and behind the last one.

        The last entry is what the final norm sees, unlike the last of transformers' `hidden_states`, which is normed.
        """
        names = [f"blocks.{index}.hook_resid_pre" for index in range(self.layers)]
        names.append(f"blocks.{self.layers - 1}.hook_resid_post")
        _, cache = self.bridge.run_with_cache(self._row(token_ids), names_filter=names)
        return torch.stack([cache[name][0] for name in names])

    @torch.inference_mode()
    def run_with_hooks(self, token_ids: Sequence[int], hooks: Sequence[tuple[str, Hook]]) -> Tensor:
        """Logits [tokens, vocabulary] of a pass in which `hooks` may replace activations.

        Args:
            token_ids: one row.
            hooks: pairs of an activation's name, such as ``blocks.3.hook_resid_post``, and a function that is called
                as ``hook(activation, hook=point)``; what it returns replaces the activation.
        """
        logits: Tensor = self.bridge.run_with_hooks(self._row(token_ids), fwd_hooks=list(hooks), return_type="logits")
        return logits[0]

    def _row(self, token_ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(token_ids)], device=self.device)


def open_lens(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Lens:
    """The TransformerLens view of `hf`; nothing is downloaded and `hf` stays as it is.

    Every parameter is shared. Where TransformerLens splits a fused projection it takes slices of it; only layouts that
    interleave the heads (BLOOM, MPT, GPT-NeoX) make it keep a rearranged copy of those matrices.

    Raises:
        ModelError: the `lens` extra is not installed, or TransformerLens does not know the architecture.
    """
    bridge_class = _bridge_class()
    module = shared_copy(hf)
    module.set_attn_implementation("eager")
    module.config.architectures = [type(hf).__name__]  # by which TransformerLens finds its adapter
    device = next(hf.parameters()).device
    try:
        bridge = bridge_class.boot_transformers(
            f"{name} (lens)",  # its own list of old model names would warn about some plain ones
            hf_model=module,
            tokenizer=_local_tokenizer(tokenizer, name),
            device=str(device),
            dtype=hf.dtype,
        )
    except (ValueError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"TransformerLens cannot open {type(hf).__name__}: {first_line[:200]}",
            hint="Everything but layer profiles and steering works without the lens.",
        ) from error
    bridge.cfg.model_name = name
    return Lens(bridge, len(bridge.blocks), device)


def shared_copy(hf: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree that holds the same parameters and buffers, without this package's hooks."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    copied = copy.deepcopy(hf, memo)
    remove_deferral(copied)
    return copied


def _bridge_class() -> type[TransformerBridge]:
    # Importing TransformerLens silences transformers' logger for the whole process; that is for the user to decide.
    transformers_logger = logging.getLogger("transformers")
    level = transformers_logger.level
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise ModelError(
            "The lens needs TransformerLens, which is not installed.", hint="pip install 'nnm-core[lens]'"
        ) from error
    finally:
        transformers_logger.setLevel(level)
    return TransformerBridge


def _local_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """A copy (the bridge sets missing special tokens) that says it adds BOS itself.

    Otherwise the bridge loads the tokenizer a second time by name, from the hub. What it really does about BOS the
    bridge finds out by trying.
    """
    copied = copy.deepcopy(tokenizer)
    copied.init_kwargs = {**copied.init_kwargs, "name_or_path": name, "add_bos_token": True}
    return copied
