"""A hash of everything that a stored state depends on: a state of another fingerprint is a miss."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
_SAMPLE = 64
# Keys of a configuration that say where the model came from or how it is run, not what it computes.
_IRRELEVANT = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache", "_commit_hash"}
)


def digest(*parts: str | bytes) -> str:
    """SHA-256 over length-prefixed `parts`, hexadecimal."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.hexdigest()


def model_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of configuration (rotary settings included), weights, dtype, attention, tokenizer and chat template.

    Weights enter by a sample: the first and last 64 values of every parameter. That tells fine-tunes apart
    without reading gigabytes at each start.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _IRRELEVANT}
    return digest(
        str(FORMAT),
        type(model).__name__,
        json.dumps(config, sort_keys=True, default=str),
        _weights_digest(model),
        str(model.dtype),
        str(model.config._attn_implementation),
        tokenizer_digest(tokenizer),
    )


def model_identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of weights and tokenizer only: the same on every device, compute type and attention implementation.

    Vectors of one identity may be compared with each other; states need the whole fingerprint.
    """
    weights = _weights_digest(model, torch.bfloat16)
    return digest(str(FORMAT), type(model).__name__, weights, tokenizer_digest(tokenizer))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of vocabulary, merges, normalisation and chat template."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    body = _plain(backend).to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return digest(body, json.dumps(tokenizer.chat_template, sort_keys=True, default=str))


def _plain(backend: Any) -> Any:
    """Without padding and truncation, which are left in a fast tokenizer by its last call."""
    if backend.padding is None and backend.truncation is None:
        return backend
    backend = copy.deepcopy(backend)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _weights_digest(model: PreTrainedModel, dtype: torch.dtype | None = None) -> str:
    parts: list[str | bytes] = []
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = torch.cat([flat[:_SAMPLE], flat[-_SAMPLE:]]).cpu()
        sample = sample.to(dtype) if dtype is not None and sample.is_floating_point() else sample
        parts += [name, str(tuple(parameter.shape)), sample.contiguous().view(torch.uint8).numpy().tobytes()]
    return digest(*parts)
