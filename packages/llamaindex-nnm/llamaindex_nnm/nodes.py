"""Between LlamaIndex's nodes and memories.

A memory's text is the node's bare text, so that its state fits whatever metadata a prompt puts in front of it. Its
metadata are the node's own, unchanged, and one reserved key that holds the rest of the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)

from nnm_core import Hit, InvalidInputError, Memory

RESERVED = "_llamaindex"
NODE, TURN = "node", "turn"
_KINDS: dict[str, type[BaseNode]] = {
    kind.class_name(): kind for kind in (TextNode, Node, IndexNode, ImageNode, Document, ImageDocument)
}
# Kept elsewhere: in the memory's text, metadata and vector, and an object that is no data.
_ELSEWHERE = {"text", "text_resource", "metadata", "embedding", "obj"}


def text_of(node: BaseNode) -> str:
    """The text that is kept, found again in prompts and injected.

    Raises:
        InvalidInputError: the node has no text.
    """
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    if not text.strip():
        raise InvalidInputError(
            f"Node {node.node_id!r} has no text.", hint="NNM keeps text; leave nodes without text out."
        )
    return text


def metadata_of(node: BaseNode) -> dict[str, Any]:
    """The memory's metadata.

    Raises:
        InvalidInputError: the node's own metadata uses the reserved key.
    """
    if RESERVED in node.metadata:
        raise InvalidInputError(f"The metadata key {RESERVED!r} of node {node.node_id!r} is reserved.")
    rest = node.model_dump(mode="json", exclude=_ELSEWHERE, exclude_defaults=True)
    own = node.model_dump(mode="json", include={"metadata"}).get("metadata", {})
    kept = {"kind": NODE, "id": node.node_id, "ref_doc_id": node.ref_doc_id, "type": node.class_name(), "node": rest}
    return {**own, RESERVED: kept}


def to_node(memory: Memory, embedding: list[float] | None = None) -> BaseNode:
    """The node again, with its id, relationships, templates and excluded keys; a plain one of a foreign memory."""
    metadata = dict(memory.metadata)
    kept: Mapping[str, Any] = metadata.pop(RESERVED, None) or {}
    kind = _KINDS.get(str(kept.get("type")), TextNode)
    node = kind.from_dict({**(kept.get("node") or {}), "id_": memory.id, "metadata": metadata})
    node.set_content(memory.text)
    node.embedding = embedding
    return node


def to_scored(hit: Hit) -> NodeWithScore:
    """A hit as LlamaIndex hands it on."""
    return NodeWithScore(node=to_node(hit.memory), score=hit.score)
