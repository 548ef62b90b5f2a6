"""The reading sets that may be trained on: the SQuAD training subset and the training portion of FairytaleQA."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipe.overlap import Blocklist, blocklist


@dataclass(frozen=True)
class Reading:
    """A passage with natural questions; `pairs` holds (question, answer), `near` other passages on the same matter."""

    source: str
    passage: str
    pairs: tuple[tuple[str, str], ...]
    near: tuple[str, ...] = ()


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
            near = [text.replace("\n", " ").strip() for n, text in enumerate(stories[story], 1) if n not in numbers]
            yield Reading("fairytale", "\n".join(sections), tuple(pairs), tuple(near))


def with_neighbours(readings: list[Reading], most: int = 3) -> list[Reading]:
    """Each reading with up to `most` others that share at least three rare capitalised words with it."""
    found = [set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,}", reading.passage)) for reading in readings]
    count = Counter(word for words in found for word in words)
    places: dict[str, list[int]] = defaultdict(list)
    for index, words in enumerate(found):
        for word in words:
            if count[word] <= 12:
                places[word].append(index)
    out = []
    for index, reading in enumerate(readings):
        shared = Counter(other for word in found[index] for other in places.get(word, ()) if other != index)
        near = [readings[other].passage for other, common in shared.most_common(most) if common >= 3]
        out.append(replace(reading, near=tuple(near)))
    return out


def load_reading_sets(data: Path, blocked: Blocklist | None = None) -> list[Reading]:
    """All training readings; none shares a window with a dev or test passage."""
    blocked = blocked or blocklist(data)
    readings = [*with_neighbours(list(squad_train(data))), *fairytale_train(data)]
    return [reading for reading in readings if reading.pairs and not blocked.blocks(reading.passage)]
