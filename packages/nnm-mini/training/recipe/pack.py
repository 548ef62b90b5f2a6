"""Packing token examples into rows of a fixed length.

A row has four arrays of `length + 1` entries: `tokens` (uint16), `loss` (uint8, the loss class of the token as a
target), `example` (uint8, which example of the row it belongs to, 0 for padding) and `group` (int8, see `layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recipe.layout import Segment

FIELDS = {"tokens": np.uint16, "loss": np.uint8, "example": np.uint8, "group": np.int8}
Row = dict[str, NDArray[Any]]
_OPEN_ROWS = 24
_LAST_EXAMPLE = 250


def encode(tokenizer: Tokenizer, examples: Sequence[Sequence[Segment]]) -> list[Row]:
    """Tokenise examples segment by segment."""
    encoded = iter(
        tokenizer.encode_batch(
            [segment.text for segments in examples for segment in segments], add_special_tokens=False
        )
    )
    out: list[Row] = []
    for segments in examples:
        tokens: list[int] = []
        loss: list[int] = []
        group: list[int] = []
        for segment in segments:
            ids = next(encoded).ids
            tokens += ids
            loss += [segment.loss] * len(ids)
            group += [segment.group] * len(ids)
        out.append(
            {"tokens": np.array(tokens, np.uint16), "loss": np.array(loss, np.uint8), "group": np.array(group, np.int8)}
        )
    return out


class Packer:
    """Best fit of examples into rows of one length; finished rows are written in shards."""

    def __init__(self, length: int, folder: Path, name: str, rows_per_shard: int = 512) -> None:
        self.length, self.folder, self.name, self.rows_per_shard = length, folder, name, rows_per_shard
        self.open: list[tuple[int, list[Row]]] = []
        self.done: list[Row] = []
        self.shards = self.rows = 0

    def add(self, example: Row) -> None:
        """Put one example (at most `length` tokens) into the fullest row that still has room."""
        size = len(example["tokens"])
        fits = [
            i for i, (used, row) in enumerate(self.open) if used + size <= self.length + 1 and len(row) < _LAST_EXAMPLE
        ]
        index = max(fits, key=lambda i: self.open[i][0]) if fits else -1
        used, row = self.open.pop(index) if fits else (0, [])
        row.append(example)
        self.open.append((used + size, row))
        if used + size > self.length - 25:
            self._close(len(self.open) - 1)
        elif len(self.open) > _OPEN_ROWS:
            self._close(max(range(len(self.open)), key=lambda i: self.open[i][0]))

    def _close(self, index: int) -> None:
        _, examples = self.open.pop(index)
        row = {name: np.zeros(self.length + 1, kind) for name, kind in FIELDS.items()}
        at = 0
        for number, example in enumerate(examples, start=1):
            end = at + len(example["tokens"])
            for name, values in example.items():
                row[name][at:end] = values
            row["example"][at:end] = number
            at = end
        self.done.append(row)
        self.rows += 1
        if len(self.done) >= self.rows_per_shard:
            self.flush()

    def flush(self, everything: bool = False) -> None:
        """Write the finished rows (and, with `everything`, the open ones) as one shard, atomically."""
        while everything and self.open:
            self._close(0)
        if not self.done:
            return
        arrays = {name: np.stack([row[name] for row in self.done]) for name in FIELDS}
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{self.name}-{self.length}-{self.shards:04d}.npz"
        temporary = target.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no keyword arrays of mixed dtype
        temporary.rename(target)
        self.done, self.shards = [], self.shards + 1
