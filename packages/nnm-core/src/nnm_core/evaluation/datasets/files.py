"""Reading data files, plain or compressed, with errors that name the file, the line or item, and what to do."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, cast

from nnm_core.errors import InvalidInputError

T = TypeVar("T")
_OPENERS: Mapping[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file, and where it stands.

    Attributes:
        value: the object.
        where: file and line or item, for messages.
        hint: what a file of this format looks like.
    """

    value: Mapping[str, Any]
    where: str
    hint: str

    def get(self, name: str, kind: type[T]) -> T:
        """A field that must be there with this type.

        Raises:
            InvalidInputError: it is missing or of another type.
        """
        if name not in self.value:
            self.fail(f"there is no {name!r}")
        value = self.value[name]
        if not isinstance(value, kind):
            self.fail(f"{name!r} is {_kind(value)}, not {_NAMES.get(kind, kind.__name__)}")
        return value

    def text(self, name: str) -> str:
        """A field that must be a string that is not blank."""
        value = self.get(name, str)
        if not value.strip():
            self.fail(f"{name!r} is empty")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of strings."""
        values = self.get(name, list)
        for number, value in enumerate(values):
            if not isinstance(value, str):
                self.fail(f"{name!r}[{number}] is {_kind(value)}, not a string")
        return values

    def rows(self, name: str) -> list[Row]:
        """A field that must be a list of objects."""
        return [
            self._inner(value, f"{self.where}, {name}[{number}]") for number, value in enumerate(self.get(name, list))
        ]

    def row(self, name: str) -> Row:
        """A field that must be an object."""
        return self._inner(self.get(name, dict), f"{self.where}, {name}")

    def _inner(self, value: Any, where: str) -> Row:
        if not isinstance(value, dict):
            raise InvalidInputError(f"{where}: {_kind(value)}, not an object.", hint=self.hint)
        return Row(value, where, self.hint)

    def fail(self, problem: str) -> NoReturn:
        """Raise `InvalidInputError` with this place and hint."""
        raise InvalidInputError(f"{self.where}: {problem}.", hint=self.hint)


_NAMES: Mapping[type, str] = {str: "a string", list: "a list", dict: "an object", int: "a whole number", bool: "a bool"}


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def find(path: Path) -> Path:
    """`path`, or the same with ``.gz``, ``.xz`` or ``.bz2`` behind it.

    Raises:
        InvalidInputError: there is none of them.
    """
    for candidate in (path, *(path.with_name(path.name + ending) for ending in _OPENERS)):
        if candidate.is_file():
            return candidate
    what = "a folder, not a file" if path.is_dir() else "no such file"
    raise InvalidInputError(f"{path}: {what}.", hint="Check the path; .gz, .xz and .bz2 are read too.")


def read_text(path: Path) -> str:
    """The whole file, decompressed by its ending, UTF-8 (a byte order mark is dropped).

    Raises:
        InvalidInputError: it cannot be read or is no UTF-8.
    """
    source = find(path)
    try:
        with _OPENERS.get(source.suffix, open)(source, "rt", encoding="utf-8-sig") as stream:
            return cast("str", stream.read())
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{source}: not UTF-8, byte 0x{error.object[error.start]:02x}.", hint="Convert the file to UTF-8."
        ) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InvalidInputError(f"{source}: cannot be read, {error}.", hint="Is it damaged? Fetch it again.") from error


def read_json(path: Path, hint: str) -> Row:
    """A file that is one JSON object.

    Raises:
        InvalidInputError: it cannot be read, is not JSON, or is no object.
    """
    value = parse_json(path, hint)
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path}: {_kind(value)}, not an object.", hint=hint)
    return Row(value, str(path), hint)


def parse_json(path: Path, hint: str) -> Any:
    """Whatever JSON value a file holds.

    Raises:
        InvalidInputError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{path}: not JSON, {error.msg} in line {error.lineno}, column {error.colno}.", hint=hint
        ) from error


def read_jsonl(path: Path, hint: str) -> Iterator[Row]:
    """The objects of a file with one JSON object a line; blank lines are passed over.

    Raises:
        InvalidInputError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{where}: not JSON, {error.msg} in column {error.colno}.", hint=hint) from error
        if not isinstance(value, dict):
            raise InvalidInputError(f"{where}: {_kind(value)}, not an object.", hint=hint)
        yield Row(value, where, hint)
