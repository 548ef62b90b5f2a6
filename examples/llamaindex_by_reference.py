"""Retriever and synthesizer of NNM in LlamaIndex's query engine: memories go by reference, no text in the prompt.

python examples/llamaindex_by_reference.py
"""

from __future__ import annotations

from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine

from llamaindex_nnm import NNMLLM, NNMQueryEngine, NNMRetriever, NNMSynthesizer, receipts
from nnm_core import NNM
from nnm_core.model.load import LoadedModel

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The spare key hangs behind the cellar door.",
]


def main(model: str | LoadedModel = "nnm-mini") -> None:
    """Ask three ways."""
    with NNM.open(model) as nnm:
        nnm.add(NOTES)
        llm = NNMLLM(nnm, max_tokens=24)
        engines = {
            "one line": NNMQueryEngine.from_nnm(nnm, 1, llm=llm),
            "two parts": RetrieverQueryEngine(
                NNMRetriever(nnm, 3),
                response_synthesizer=NNMSynthesizer(llm),
                node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.5)],
            ),
            "streaming": NNMQueryEngine.from_nnm(nnm, 1, llm=llm, streaming=True),
        }
        for name, engine in engines.items():
            with receipts() as taken:
                response = engine.query("Who leads the Falcon project?")
                text = "".join(response.response_gen) if isinstance(response, StreamingResponse) else str(response)
            outcome = sorted(taken[-1].memories.values())
            print(f"{name:10} {text!r} tier={taken[-1].tier} memories={outcome}")


if __name__ == "__main__":
    main()
