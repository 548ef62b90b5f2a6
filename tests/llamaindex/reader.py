"""A tiny random reader with a context that LlamaIndex's own prompts fit into, and an engine on it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from tests.core.tiny import byte_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from nnm_core import NNM
from nnm_core.model.load import LoadedModel, wrap_model

TEXTS = {
    "bins": "The bins are collected on Tuesday.",
    "falcon": "Maria leads the Falcon project.",
    "key": "The spare key hangs behind the door.",
}


@cache
def reader() -> LoadedModel:
    """16,384 byte tokens of context; its answers are noise, but always the same noise."""
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=16_384,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    return wrap_model(Qwen3ForCausalLM(config).eval(), byte_tokenizer(), name="tiny-qwen3")


def open_engine(path: Any = None, **options: Any) -> NNM:
    """An empty engine, in RAM unless a path is given."""
    return NNM.open(reader(), path, system="Be brief.", **options)


def filled(path: Any = None, **options: Any) -> NNM:
    """An engine that knows `TEXTS`."""
    nnm = open_engine(path, **options)
    nnm.add(list(TEXTS.values()), ids=list(TEXTS), metadatas=[{"room": name} for name in TEXTS])
    return nnm


def in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work` on an event loop of its own, apart from that of the test runner."""
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, asyncio.run, work).result()
