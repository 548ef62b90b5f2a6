"""Load a decoder from a name or a folder, with the settings that its states depend on."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as transformers_logging

from nnm_core.errors import InvalidInputError, ModelError, ModelNotFoundError, UnsupportedModelError
from nnm_core.model import attention
from nnm_core.model.fingerprint import model_fingerprint, model_identity
from nnm_core.model.positions import Positions, embedding_weight, measure_positions

if TYPE_CHECKING:
    from nnm_core.model.lens import Lens

logger = logging.getLogger(__name__)

MINI = "nnm-mini"
DEFAULT_CONTEXT = 4096
_QUIET_BYTES = 2 * 2**30
_KV_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True)
class ModelSettings:
    """How a model is to be loaded.

    Attributes:
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``; None takes the fastest one present.
        dtype: name of a torch floating type; None takes bfloat16 on an accelerator that has it, else float32.
        quantize: ``4bit`` for bitsandbytes NF4 weights (needs the `quantize` extra and a GPU).
        revision: branch, tag or commit of a hub model.
        attention: attention implementation of transformers; None lets transformers choose (SDPA where it can).
        trust_remote_code: run code that the model repository ships. Off unless asked for.
    """

    device: str | None = None
    dtype: str | None = None
    quantize: Literal["4bit"] | None = None
    revision: str | None = None
    attention: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """One set of weights and what the rest of the engine needs to know about it.

    Attributes:
        name: what the user called it.
        hf: the fast view, a transformers decoder in eval mode.
        tokenizer: its tokenizer.
        device: where its embeddings live.
        dtype: the compute type; states are kept in it.
        context_limit: the largest number of positions, prompt and answer together.
        intervenes: whether its attention goes through `nnm_core.model.attention`.
        positions: where its states may be put, found by measurement.
        fingerprint: hash of everything that a state depends on.
        identity: hash of weights and tokenizer: what vectors depend on.
        workspace: what upper layers keep for this model as long as it lives (static buffers, pinned staging).
    """

    name: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    context_limit: int
    intervenes: bool
    positions: Positions
    fingerprint: str
    identity: str
    workspace: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layers(self) -> int:
        """Number of layers that keep keys and values."""
        return self.positions.layers

    @cached_property
    def lens(self) -> Lens:
        """The TransformerLens view of the same weights, made on first use (needs the `lens` extra)."""
        from nnm_core.model.lens import open_lens

        return open_lens(self.hf, self.tokenizer, self.name)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token id that ends an answer."""
        found: set[int] = set()
        for source in (self.hf.generation_config, self.hf.config, self.tokenizer):
            value = getattr(source, "eos_token_id", None)
            found.update(value if isinstance(value, list | tuple) else [value] if value is not None else [])
        return frozenset(int(token) for token in found)


def load_model(name: str, settings: ModelSettings | None = None) -> LoadedModel:
    """Load `name`: ``nnm-mini``, a local folder, or a name on the Hugging Face hub.

    Raises:
        ModelNotFoundError: nothing of that name, or no network.
        UnsupportedModelError: the model keeps no per-token keys and values, or is no causal decoder.
        ModelError: its files are damaged or incomplete, or it wants to run code of its own.
        InvalidInputError: settings that this machine cannot fulfil.
    """
    settings = settings or ModelSettings()
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    source = _resolve(name)
    common: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        refuse_unfit(config, name)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        with _quiet(source):
            made: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                attn_implementation=settings.attention,
                output_loading_info=True,
                **common,
                **_placement(settings),
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _not_loadable(name, error) from error
    hf, report = made
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelError(
            f"{name} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])} ...",
            hint="Use a checkpoint of a causal language model, or download it again.",
        )
    if settings.quantize is None:
        hf = hf.to(device)
    return wrap_model(hf, tokenizer, name=name)


def wrap_model(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> LoadedModel:
    """Make a `LoadedModel` of a model that is already in memory.

    Raises:
        UnsupportedModelError: as in `load_model`.
    """
    refuse_unfit(hf.config, name)
    hf.eval().requires_grad_(False)
    intervenes = attention.install(hf, hf.config._attn_implementation or "sdpa")
    positions = measure_positions(hf, name)
    if positions.note:
        logger.warning("%s: %s", name, positions.note)
    return LoadedModel(
        name=name,
        hf=hf,
        tokenizer=tokenizer,
        device=embedding_weight(hf).device,
        dtype=hf.dtype,
        context_limit=_context_limit(hf.config),
        intervenes=intervenes,
        positions=positions,
        fingerprint=model_fingerprint(hf, tokenizer),
        identity=model_identity(hf, tokenizer),
    )


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, or the fastest one present."""
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InvalidInputError(f"{wanted!r} is no device.", hint="Use 'cuda', 'cuda:1', 'mps' or 'cpu'.") from error
    present = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 1):
        raise InvalidInputError(f"This machine has no device {wanted}.", hint="Use device='cpu'.")
    return device


def choose_dtype(wanted: str | None, device: torch.device) -> torch.dtype:
    """The floating type asked for, or bfloat16 on accelerators that have it, float16 on the others, float32 on CPU."""
    if wanted is not None:
        dtype = getattr(torch, wanted, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InvalidInputError(f"{wanted!r} is no floating dtype.", hint="Use 'float32', 'bfloat16' or 'float16'.")
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def refuse_unfit(config: PreTrainedConfig, name: str) -> None:
    """Raise `UnsupportedModelError` for architectures whose state is not one key and value a token and layer."""
    hint = "Use a decoder-only transformer (Llama, Qwen, Mistral, Gemma, Phi, GPT-NeoX ...)."
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} ({config.model_type}) is an encoder-decoder model.", hint=hint)
    text_config = config.get_text_config(decoder=True)
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if other := sorted(kinds - _KV_LAYER_TYPES):
        raise UnsupportedModelError(f"{name} ({config.model_type}) has layers of kind {', '.join(other)}.", hint=hint)
    if not kinds and any(hasattr(text_config, key) for key in ("ssm_cfg", "state_size", "mamba_d_state")):
        raise UnsupportedModelError(f"{name} ({config.model_type}) is a state-space or hybrid model.", hint=hint)
    layers = DynamicCache(config=text_config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        what = "shares states between layers or keeps other ones than keys and values"
        raise UnsupportedModelError(f"{name} ({config.model_type}) {what}.", hint=hint)


def _resolve(name: str) -> str:
    if name != MINI or Path(name).is_dir():
        return name
    if importlib.util.find_spec("nnm_mini") is None:
        raise ModelNotFoundError("The bundled model nnm-mini is not installed.", hint="pip install nnm-mini")
    import nnm_mini

    return str(nnm_mini.path())


def _placement(settings: ModelSettings) -> dict[str, Any]:
    if settings.quantize is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInputError("4-bit weights need bitsandbytes.", hint="pip install 'nnm-core[quantize]'")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": quantization, "device_map": settings.device or "auto"}


@contextmanager
def _quiet(source: str) -> Iterator[None]:
    """Without transformers' progress bar while a small model is read from a local folder; downloads keep theirs."""
    folder = Path(source)
    small = folder.is_dir() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < _QUIET_BYTES
    chosen_by_user = "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ
    if chosen_by_user or not small or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def _not_loadable(name: str, error: Exception) -> ModelError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{name} comes with code of its own, which was not run.",
            hint="Pass trust_remote_code=True if you trust its authors.",
        )
    if isinstance(error, ValueError) and "AutoModelForCausalLM" in str(error):
        return UnsupportedModelError(f"{name} is no causal language model: {first_line}", hint="Use a decoder.")
    if isinstance(error, SafetensorError | RuntimeError):
        return ModelError(f"The weights of {name} cannot be read: {first_line}", hint="Download the model again.")
    if isinstance(error, ImportError):
        return ModelError(f"{name} needs a package that is not installed: {first_line}", hint="Install that package.")
    return ModelNotFoundError(
        f"Cannot load the model {name!r}: {first_line}",
        hint="Give a local folder, 'nnm-mini', or a hub name such as 'Qwen/Qwen2.5-0.5B-Instruct' with a network.",
    )


def _context_limit(config: PreTrainedConfig) -> int:
    text_config = config.get_text_config(decoder=True)
    for key in ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"):
        value = getattr(text_config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_CONTEXT
