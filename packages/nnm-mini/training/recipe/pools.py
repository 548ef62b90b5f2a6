"""Training data on the device: text as one token stream, reading rows by source and length, both growing as files
appear."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipe.layout import CONTEXT


@dataclass
class Batch:
    """Rows of `length + 1` tokens with loss class, example number and group, each [rows, length + 1]."""

    tokens: Tensor
    loss: Tensor
    example: Tensor
    group: Tensor


class TextPool:
    """All text tokens in one stream; `batch` cuts it at a random offset into windows, each used once before the
    next cut."""

    def __init__(
        self, folder: Path, device: torch.device, generator: torch.Generator, pattern: str = "text-*.npy"
    ) -> None:
        self.folder, self.device, self.generator, self.pattern = folder, device, generator, pattern
        self.files: set[Path] = set()
        self.stream = torch.zeros(0, dtype=torch.int16, device=device)
        self.starts: dict[int, Tensor] = {}

    def refresh(self) -> bool:
        """Load new files; true if there were any."""
        new = [file for file in sorted(self.folder.glob(self.pattern)) if file not in self.files]
        if new:
            loaded = [torch.from_numpy(np.load(file).view(np.int16)).to(self.device) for file in new]
            self.files.update(new)
            self.stream = torch.cat([self.stream, *loaded])
            self.starts = {}
        return bool(new)

    def rows(self, length: int) -> int:
        """How many windows of `length + 1` tokens there are."""
        return max(0, (self.stream.numel() - 1) // length)

    def batch(self, rows: int, length: int) -> Batch:
        """Windows with documents told apart by the <|endoftext|> (token 0) in front of each."""
        if length not in self.starts or self.starts[length].numel() < rows:
            offset = int(
                torch.randint(max(1, min(length, self.stream.numel() - length)), (1,), generator=self.generator)
            )
            count = (self.stream.numel() - offset - 1) // length
            order = torch.randperm(max(count, 1), generator=self.generator)
            if count < rows:
                order = order.repeat(rows // max(count, 1) + 1)
            self.starts[length] = (order * length + offset).to(self.device)
        starts, self.starts[length] = self.starts[length][:rows], self.starts[length][rows:]
        return self.windows(starts, length)

    def windows(self, starts: Tensor, length: int) -> Batch:
        """The windows that begin at `starts`."""
        tokens = self.stream[starts[:, None] + torch.arange(length + 1, device=self.device)].long() & 0xFFFF
        example = (tokens == 0).cumsum(1)
        return Batch(tokens, torch.full_like(tokens, CONTEXT), example, torch.zeros_like(tokens))


class RowPool:
    """Rows of one source; the least used ones come first. Of several ranks, each loads its own share of the files."""

    def __init__(
        self, folder: Path, device: torch.device, generator: torch.Generator, rank: int = 0, world: int = 1
    ) -> None:
        self.folder, self.device, self.generator, self.rank, self.world = folder, device, generator, rank, world
        self.files: set[Path] = set()
        self.seen = 0
        self.arrays: dict[int, dict[str, Tensor]] = {}
        self.uses: dict[int, Tensor] = {}
        self.order: dict[int, Tensor] = {}

    def refresh(self) -> bool:
        """Load this rank's share of the new files; true if there were any."""
        new = [
            file
            for file in sorted(self.folder.glob("*.npz"), key=lambda f: (f.stat().st_mtime_ns, f.name))
            if file not in self.files
        ]
        found: dict[int, list[dict[str, np.ndarray]]] = {}
        for file in new:
            self.files.add(file)
            self.seen += 1
            if self.seen % self.world == self.rank:
                with np.load(file) as loaded:
                    arrays = {name: loaded[name] for name in loaded.files}
                arrays["tokens"] = arrays["tokens"].view(np.int16)
                found.setdefault(arrays["tokens"].shape[1] - 1, []).append(arrays)
        for length, parts in found.items():
            old = self.arrays.get(length)
            merged = {n: torch.from_numpy(np.concatenate([p[n] for p in parts])).to(self.device) for n in parts[0]}
            self.arrays[length] = {n: torch.cat([old[n], v]) for n, v in merged.items()} if old else merged
            uses = torch.zeros(self.rows(length))
            if old:
                uses[: len(self.uses[length])] = self.uses[length]
            self.uses[length] = uses
            self.order.pop(length, None)
        return bool(new)

    def rows(self, length: int) -> int:
        """How many rows of this length are loaded."""
        return len(self.arrays[length]["tokens"]) if length in self.arrays else 0

    def first(self, rows: int, length: int) -> Batch:
        """The first rows, always the same."""
        arrays = self.arrays[length]
        tokens = arrays["tokens"][:rows].long() & 0xFFFF
        return Batch(tokens, *(arrays[name][:rows].long() for name in ("loss", "example", "group")))

    def batch(self, rows: int, length: int) -> Batch:
        """The next rows; with fewer rows than asked for, some come twice."""
        if length not in self.order or len(self.order[length]) < rows:
            uses = self.uses[length]
            order = torch.argsort(uses + torch.rand(len(uses), generator=self.generator) * 0.999)
            self.order[length] = order.repeat(rows // max(len(order), 1) + 1) if len(order) < rows else order
        picked, self.order[length] = self.order[length][:rows], self.order[length][rows:]
        self.uses[length][picked] += 1
        index = picked.to(self.device)
        arrays = self.arrays[length]
        tokens = arrays["tokens"][index].long() & 0xFFFF
        return Batch(tokens, *(arrays[name][index].long() for name in ("loss", "example", "group")))


def split(batch: Batch, tokens: int) -> list[Batch]:
    """A batch in parts of whole rows with at most `tokens` tokens each (one row at least)."""
    rows = max(1, tokens // (batch.tokens.shape[1] - 1))
    names = ("tokens", "loss", "example", "group")
    count = batch.tokens.shape[0]
    return [Batch(*(getattr(batch, name)[at : at + rows] for name in names)) for at in range(0, count, rows)]


def joined(parts: list[Batch]) -> Batch:
    """Batches of equal length, one below the other."""
    return Batch(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "loss", "example", "group"))
    )
