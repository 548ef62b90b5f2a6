"""Keeping the test data out of the training data, by hashes of word windows.

Every window of `WINDOW` words of every dev or test passage is hashed. A training text is cut into windows that do not
overlap; one hit drops it. A run of 2 * WINDOW - 1 common words is therefore always found, however it is aligned.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

WINDOW = 10
_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case alphanumeric words: punctuation and markup do not hide an overlap."""
    return _WORD.findall(text.lower())


def _hash(window: list[str]) -> int:
    # 64 bits: with 32, some of the hundreds of thousands of windows meet another one's hash by chance.
    return int.from_bytes(hashlib.blake2b(" ".join(window).encode(), digest_size=8).digest(), "little")


class Blocklist:
    """The hashed windows of all texts that must not be trained on."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.hashes: set[int] = set()
        for text in texts:
            tokens = words(text)
            self.hashes.update(_hash(tokens[i : i + WINDOW]) for i in range(len(tokens) - WINDOW + 1))

    def blocks(self, text: str) -> bool:
        """Whether `text` shares a window with a blocked text (a run of 19 words always does)."""
        tokens = words(text)
        return any(_hash(tokens[i : i + WINDOW]) in self.hashes for i in range(0, len(tokens) - WINDOW + 1, WINDOW))

    def clean(self, text: str) -> str:
        """`text` without the lines that are blocked."""
        return "\n".join(line for line in text.split("\n") if not self.blocks(line))


def squad_passages(path: Path) -> list[str]:
    """The passages of a file in the official SQuAD layout."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]


def held_out_texts(data: Path) -> list[str]:
    """Every dev and test passage in the data folder: SQuAD dev v1.1 and v2.0, FairytaleQA val and test."""
    texts = [text for name in ("dev-v1.1", "dev-v2.0") for text in squad_passages(data / "squad" / f"{name}.json.gz")]
    for name in ("val", "test"):
        with gzip.open(data / "fairytaleqa" / f"{name}.stories.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [section for line in file for section in json.loads(line)["sections"]]
    return texts


def blocklist(data: Path) -> Blocklist:
    """The block list of the whole data folder."""
    return Blocklist(held_out_texts(data))
