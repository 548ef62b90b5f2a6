"""The reading sets that may be trained on: the SQuAD training subset and the training portion of FairytaleQA."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.overlap import Blocklist, blocklist


@dataclass(frozen=True)
class Reading:
    """A passage with natural questions; `pairs` holds (question, answer)."""

    source: str
    passage: str
    pairs: tuple[tuple[str, str], ...]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def squad_train(data: Path) -> Iterator[Reading]:
    """SQuAD training passages (CC BY-SA 4.0)."""
    for row in _rows(data / "squad" / "train-subset.jsonl.gz"):
        pairs = tuple((qa["question"].strip(), qa["answer"].strip()) for qa in row["qas"])
        yield Reading("squad", row["context"].strip(), pairs)


def fairytale_train(data: Path) -> Iterator[Reading]:
    """FairytaleQA training sections (Apache-2.0), one reading a run of sections that a question is about."""
    stories = {row["story"]: row["sections"] for row in _rows(data / "fairytaleqa" / "train.stories.jsonl.gz")}
    grouped: dict[tuple[str, tuple[int, ...]], list[tuple[str, str]]] = defaultdict(list)
    for row in _rows(data / "fairytaleqa" / "train.qa.jsonl.gz"):
        if row["answers"] and row["story"] in stories:
            key = (row["story"], tuple(row["sections"]))
            grouped[key].append((row["question"].strip(), row["answers"][0].strip().rstrip(".")))
    for (story, numbers), pairs in grouped.items():
        sections = [stories[story][n - 1].replace("\n", " ").strip() for n in numbers if n <= len(stories[story])]
        if sections:
            yield Reading("fairytale", "\n".join(sections), tuple(pairs))


def load_reading_sets(data: Path, blocked: Blocklist | None = None) -> list[Reading]:
    """All training readings; none shares a window with a dev or test passage."""
    blocked = blocked or blocklist(data)
    readings = [*squad_train(data), *fairytale_train(data)]
    return [reading for reading in readings if reading.pairs and not blocked.blocks(reading.passage)]
