"""Cutting documents into passages that can be found and read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nnm_core.errors import InvalidInputError

_PARAGRAPHS = re.compile(r"\n\s*\n|\n")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def cut(text: str, *, words: int = 120) -> list[str]:
    """Passages of about `words` words at most, cut between paragraphs, within long ones between sentences.

    A single sentence that is longer is cut between words: no passage is longer than `words` words.

    Raises:
        InvalidInputError: `words` is less than one.
    """
    if words < 1:
        raise InvalidInputError(f"Passages of {words} words cannot be cut.", hint="Take about 120.")
    passages: list[str] = []
    held: list[str] = []
    size = 0
    for piece in _pieces(text, words):
        length = len(piece.split())
        if held and size + length > words:
            passages.append(" ".join(held))
            held, size = [], 0
        held.append(piece)
        size += length
    if held:
        passages.append(" ".join(held))
    return passages


def _pieces(text: str, words: int) -> Iterator[str]:
    for paragraph in _PARAGRAPHS.split(text):
        for sentence in _SENTENCES.split(" ".join(paragraph.split())):
            parts = sentence.split()
            for start in range(0, len(parts), words):
                yield " ".join(parts[start : start + words])
