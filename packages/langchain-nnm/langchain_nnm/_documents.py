"""Memories as documents and documents as memories: text, metadata and id as they were given, and nothing else."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document

from nnm_core import InvalidInputError, Memory

_SPACE = uuid.UUID("6f0a3c4e-54f7-5c0f-9d8b-0d6a4f1e2b90")


def to_document(memory: Memory) -> Document:
    """The document of a memory; its metadata is the caller's to change."""
    return Document(id=memory.id, page_content=memory.text, metadata=copy.deepcopy(dict(memory.metadata)))


def ids_for(documents: Sequence[Document], given: Sequence[str | None] | None) -> list[str]:
    """An id for each document: the given one, its own, or one made of its text and metadata.

    The last makes adding the same document again harmless, while equal texts from different places stay apart.

    Raises:
        InvalidInputError: another number of ids than documents.
    """
    if given is not None and len(given) != len(documents):
        raise InvalidInputError(f"{len(documents)} documents but {len(given)} ids.", hint="Pass one for each.")
    explicit = given if given is not None else [None] * len(documents)
    return [chosen or document.id or _made_id(document) for chosen, document in zip(explicit, documents, strict=True)]


def _made_id(document: Document) -> str:
    content = json.dumps([document.page_content, document.metadata], sort_keys=True, default=str)
    return str(uuid.uuid5(_SPACE, content))


def as_documents(texts: Iterable[str], metadatas: list[dict[str, Any]] | None) -> list[Document]:
    """Texts and their metadata as documents.

    Raises:
        InvalidInputError: another number of metadatas than texts.
    """
    given = list(texts)
    if metadatas is not None and len(metadatas) != len(given):
        raise InvalidInputError(f"{len(given)} texts but {len(metadatas)} metadatas.", hint="Pass one for each.")
    return [
        Document(page_content=text, metadata=metadata)
        for text, metadata in zip(given, metadatas or [{}] * len(given), strict=True)
    ]
