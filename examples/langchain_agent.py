"""Agents made by `create_agent`: with a retrieval tool, and with memory as a middleware.

    python examples/langchain_agent.py

The small bundled model has not learnt to call tools, so a middleware makes the first call for it. With a model whose
chat template takes tools (Qwen's, for one), leave that middleware out: `ChatNNM` offers the tools and parses the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import BaseTool, tool

from langchain_nnm import ChatNNM, NNMMiddleware, NNMRetriever
from nnm_core import NNM

NOTES = [
    "The bins are collected on Tuesday morning; put them out on Monday evening.",
    "Maria Lopez leads the Falcon project. Her office is room 417.",
    "The spare key hangs behind the cellar door.",
]


class AskMemoryFirst(AgentMiddleware[Any, Any, Any]):
    """Calls the retrieval tool with the user's question, and offers the model no tools."""

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Short-circuit the first call of a turn."""
        last = request.messages[-1]
        if isinstance(last, HumanMessage):
            return AIMessage("", tool_calls=[{"name": "recall", "args": {"query": last.text}, "id": str(uuid4())}])
        return handler(request.override(tools=[]))


def retrieval_tool(nnm: NNM) -> BaseTool:
    """A tool whose artifact names the documents; `ChatNNM` finds their text in the tool's message."""
    retriever = NNMRetriever(nnm=nnm, k=1)

    @tool(response_format="content_and_artifact")
    def recall(query: str) -> tuple[str, list[Document]]:
        """Recall notes about a topic."""
        documents = retriever.invoke(query)
        return "\n\n".join(f"Content: {document.page_content}" for document in documents), documents

    return recall


def main(model: str = "nnm-mini") -> None:
    """Ask two agents the same question."""
    question: Any = {"messages": [HumanMessage("Who leads the Falcon project?")]}
    with NNM.open(model) as nnm:
        nnm.add(NOTES)
        chat = ChatNNM(nnm=nnm, max_tokens=24, policy="fast")

        agent = create_agent(chat, [retrieval_tool(nnm)], middleware=[AskMemoryFirst()])
        for message in agent.invoke(question)["messages"]:
            print(f"{message.type:6} {message.text!r} {memories(message)}")

        # By reference: no text of the notes is in the messages at all.
        agent = create_agent(chat, middleware=[NNMMiddleware(nnm, k=1)])
        for message in agent.invoke(question)["messages"]:
            print(f"{message.type:6} {message.text!r} {memories(message)}")


def memories(message: Any) -> str:
    """How the memories of an answer were used."""
    return ", ".join(message.response_metadata.get("nnm", {}).get("memories", {}).values())


if __name__ == "__main__":
    main()
