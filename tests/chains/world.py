"""What the chain tests share: an engine, its documents, and a callback that collects what each answer was made of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.outputs import LLMResult
from tests.core.tiny import tiny_reader

from langchain_nnm import ChatNNM, NNMRetriever
from nnm_core import NNM
from nnm_core.model.load import LoadedModel

TEXTS = {
    "bins": "The bins are collected on Tuesday.\nIn winter they are collected on Friday.",
    "falcon": "Maria leads the Falcon project, which was started in 2019.",
    "key": "The spare key hangs behind the door of the shed.",
}
QUESTION = "Who leads the Falcon project, and when are the bins collected?"


@cache
def wide_reader() -> LoadedModel:
    """The tiny reader with room for the prompts of whole chains."""
    return replace(tiny_reader(), context_limit=8192)


def fill(nnm: NNM) -> NNM:
    nnm.add(list(TEXTS.values()), ids=list(TEXTS), metadatas=[{"source": f"{name}.txt"} for name in TEXTS])
    return nnm


def chat(nnm: NNM, **options: Any) -> ChatNNM:
    return ChatNNM(nnm=nnm, **{"max_tokens": 2, "policy": "fast", **options})


def retriever(nnm: NNM, k: int = 2) -> NNMRetriever:
    return NNMRetriever(nnm=nnm, k=k)


def join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


class Receipts(BaseCallbackHandler):
    """Collects the receipt of every answer of a run, in order."""

    run_inline = True

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        generation = response.generations[0][0]
        message = getattr(generation, "message", None)
        metadata = message.response_metadata if message is not None else generation.generation_info or {}
        if "nnm" in metadata:
            self.all.append(metadata["nnm"])

    @property
    def config(self) -> Any:
        return {"callbacks": [self]}

    @property
    def last(self) -> dict[str, Any]:
        return self.all[-1]

    def injected(self) -> set[str]:
        return {name for name, how in self.last["memories"].items() if how == "injected"}
