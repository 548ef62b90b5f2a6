"""Turning results into what people and programs read: short lines, durations, JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnm_core.errors import StorageError

STDOUT_NAME = "-"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """`text` without control characters, so that a stored text cannot drive the reader's terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def snippet(text: str, width: int = 160) -> str:
    """`text` on one line, cut to `width` characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def seconds(value: float) -> str:
    """A duration for people: ``12 ms``, ``0.81 s``, ``75 s``."""
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def plain(value: Any) -> Any:
    """`value` made of what JSON knows: dataclasses and mappings become objects, other iterables become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def write_json(target: Path | None, value: Any) -> None:
    """Write `value` to the file `target`, to stdout if that is ``-``, or nowhere if it is None.

    Raises:
        StorageError: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n"
    if str(target) == STDOUT_NAME:
        sys.stdout.write(text)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"Cannot write {target}: {error.strerror}.", hint="Name another file with --json."
        ) from error


def quiet_libraries() -> None:
    """Keep the loading bars and advice of the libraries off the terminal; warnings that matter still come."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
