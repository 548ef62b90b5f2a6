"""Memories as documents: text, metadata and id as they were given, and nothing else."""

from __future__ import annotations

import copy

from langchain_core.documents import Document

from nnm_core import Memory


def to_document(memory: Memory) -> Document:
    """The document of a memory; its metadata is the caller's to change."""
    return Document(id=memory.id, page_content=memory.text, metadata=copy.deepcopy(dict(memory.metadata)))
