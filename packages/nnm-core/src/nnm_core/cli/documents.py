"""Reading what people have: files, folders, JSONL and stdin, one document at a time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nnm_core.errors import InvalidInputError, NNMError

TEXT_SUFFIXES = (".txt", ".md")
JSONL_SUFFIXES = (".jsonl",)
STDIN_NAME = "-"


@dataclass(frozen=True, slots=True)
class Document:
    """One text to be remembered.

    Attributes:
        id: the file's path as it was given, ``path#2`` for the second piece of a split file, the ``id`` field of a
            JSONL record, or ``path:LINE`` where a record has none.
        text: the text, never empty.
        metadata: the other fields of a record; ``source`` names the file.
        origin: for messages, ``path`` or ``path:LINE``.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or record that could not be used, and why."""

    origin: str
    error: NNMError


Found = Document | Unreadable


def read_documents(sources: Iterable[str], *, split: int = 0, jsonl_stdin: bool = False) -> Iterator[Found]:
    """Read every source in order, lazily.

    Args:
        sources: files (``.txt``, ``.md``, ``.jsonl``), folders (such files in them, sorted by path), ``-`` (stdin).
        split: cut text files at paragraph borders into pieces of at most about this many words; 0 keeps them whole.
            Records of a JSONL file are never cut.
        jsonl_stdin: stdin holds JSONL, not text.

    Yields:
        documents, and in their place `Unreadable` for what could not be used; reading goes on after it.
    """
    for source in sources:
        if source == STDIN_NAME:
            stream = sys.stdin.buffer
            yield from _records(stream, "stdin") if jsonl_stdin else _texts(stream.read(), "stdin", split)
            continue
        for path in _files(Path(source)):
            yield from _read_file(path, split)


def count_files(sources: Iterable[str]) -> int:
    """How many files and streams `read_documents` will open."""
    return sum(1 if source == STDIN_NAME else len(_files(Path(source))) for source in sources)


def _files(path: Path) -> list[Path]:
    suffixes = TEXT_SUFFIXES + JSONL_SUFFIXES
    if not path.is_dir():
        return [path]
    return sorted(found for found in path.rglob("*") if found.is_file() and found.suffix.lower() in suffixes)


def _read_file(path: Path, split: int) -> Iterator[Found]:
    name = path.as_posix()
    suffix = path.suffix.lower()
    try:
        if not path.exists():
            raise InvalidInputError(f"{name}: no such file or folder.", hint="Check the path.")
        if suffix in JSONL_SUFFIXES:
            with path.open("rb") as stream:
                yield from _records(stream, name)
        elif suffix in TEXT_SUFFIXES:
            yield from _texts(path.read_bytes(), name, split)
        else:
            known = ", ".join(TEXT_SUFFIXES + JSONL_SUFFIXES)
            hint = f"Files that are read: {known}; other text can be piped to 'nnm add -'."
            raise InvalidInputError(f"{name}: this kind of file is not read.", hint=hint)
    except InvalidInputError as error:
        yield Unreadable(name, error)
    except OSError as error:
        yield Unreadable(name, InvalidInputError(f"{name}: {error.strerror or error}.", hint="Check its rights."))


def _decode(data: bytes, origin: str, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = offset + error.start
        raise InvalidInputError(
            f"{origin}: not UTF-8, byte 0x{data[error.start]:02x} at offset {where}.",
            hint="Convert the file (for example with 'iconv -t UTF-8'), or leave it out with --skip-errors.",
        ) from error


def _texts(data: bytes, origin: str, split: int) -> Iterator[Found]:
    try:
        text = _decode(data, origin).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
        if not text.strip():
            raise InvalidInputError(f"{origin}: there is no text in it.", hint="Leave it out with --skip-errors.")
    except InvalidInputError as error:
        yield Unreadable(origin, error)
        return
    pieces = split_text(text, split) if split else [text]
    for number, piece in enumerate(pieces, start=1):
        identity = origin if len(pieces) == 1 else f"{origin}#{number}"
        yield Document(identity, piece, {"source": origin}, origin)


def split_text(text: str, words: int) -> list[str]:
    """Cut `text` at empty lines, then at sentence ends, into pieces of at most `words` words where that is possible.

    A single sentence longer than `words` words stays whole.
    """
    pieces: list[list[str]] = []
    room = 0
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = [paragraph] if len(paragraph.split()) <= words else re.split(r"(?<=[.!?])\s+", paragraph)
        for number, sentence in enumerate(part.strip() for part in sentences):
            length = len(sentence.split())
            if not length:
                continue
            if not pieces or length > room:
                pieces.append([sentence])
                room = words - length
            else:
                pieces[-1].append((" " if number else "\n\n") + sentence)
                room -= length
    return ["".join(piece) for piece in pieces]


def _records(stream: BinaryIO, name: str) -> Iterator[Found]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        origin = f"{name}:{number}"
        try:
            text = _decode(line, origin, offset)
            if text.strip():
                yield _record(text, name, origin)
        except InvalidInputError as error:
            yield Unreadable(origin, error)
        offset += len(line)


def _record(line: str, name: str, origin: str) -> Document:
    try:
        value = json.loads(line.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
    except json.JSONDecodeError as error:
        message = f"{origin}: not JSON, {error.msg} at column {error.colno}."
        raise InvalidInputError(message, hint="A JSONL file has one JSON object a line.") from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        message = f"{origin}: no text." if isinstance(value, dict) else f"{origin}: not a JSON object."
        raise InvalidInputError(message, hint='Each line needs a "text" field; "id" and "title" are optional.')
    identity = value.get("id")
    if identity is not None and not isinstance(identity, str | int):
        raise InvalidInputError(f"{origin}: the id is neither a string nor a number.", hint="Use a string.")
    metadata = {"source": name} | {key: item for key, item in value.items() if key not in ("id", "text")}
    return Document(origin if identity in (None, "") else str(identity), text, metadata, origin)
