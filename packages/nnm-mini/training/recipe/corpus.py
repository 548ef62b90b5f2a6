"""Reading Wikipedia text: documents separated by a line `<|endoftext|>`, the first line of a document is its title."""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

SEPARATOR = "<|endoftext|>"
HELD_OUT_EVERY = 400
"""One document in this many (by crc32 of its title) is never trained on: it measures perplexity."""

_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|St|No|vs|Jr|Sr|c|Gen|Col|Lt|Capt|Sgt|Inc|Co|Ltd|Prof|Rev|Mt|Ft|ca|approx|etc|e\.g|i\.e|Vol|pp|ed|fl|[A-Z])\.$"
)
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]\"”%][.!?]) (?=[A-Z\"“\d])|(?<=[.!?][\"”]) (?=[A-Z])")
_LINE_CHARS, _LINE_WORDS = 70, 9
"""Shorter lines are headings, captions or list entries: they make no passage."""


@dataclass(frozen=True)
class Document:
    """One article: its title and its text without the title line."""

    title: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept for measuring."""
        return zlib.crc32(self.title.encode()) % HELD_OUT_EVERY == 0


def open_text(path: Path) -> TextIO:
    """A text file, compressed with xz or not."""
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def documents(path: Path) -> Iterator[Document]:
    """The documents of one file, in order; those shorter than 120 characters are skipped."""
    lines: list[str] = []
    with open_text(path) as file:
        for line in file:
            if line.rstrip("\n") == SEPARATOR:
                yield from _document(lines)
                lines = []
            else:
                lines.append(line)
    yield from _document(lines)


def _document(lines: list[str]) -> Iterator[Document]:
    stripped = "".join(lines).strip()
    title, _, text = stripped.partition("\n")
    if len(text) >= 120:
        yield Document(title.strip(), text.strip())


def sentences(text: str) -> list[str]:
    """Split a paragraph into sentences; abbreviations do not end one."""
    out: list[str] = []
    pending = ""
    for piece in _SENTENCE_END.split(text):
        pending = f"{pending} {piece}" if pending else piece
        if not _ABBREVIATION.search(pending):
            out.append(pending)
            pending = ""
    return [*out, pending] if pending else out


def passages(text: str, target_words: int, longest_words: int = 260) -> list[str]:
    """Cut an article into passages of about `target_words` words, at sentence ends, dropping headings and lists."""
    out: list[str] = []
    current: list[str] = []
    words = 0
    for line in text.split("\n"):
        line = line.strip()
        if len(line) < _LINE_CHARS or line.count(" ") < _LINE_WORDS:
            continue
        for sentence in sentences(line):
            length = sentence.count(" ") + 1
            if words and words + length > longest_words:
                out.append(" ".join(current))
                current, words = [], 0
            current.append(sentence)
            words += length
        if words >= target_words * 0.7:
            out.append(" ".join(current))
            current, words = [], 0
    if words > 40 or (words and not out):
        out.append(" ".join(current))
    return [passage for passage in out if passage.count(" ") <= longest_words + 120]
