"""Text to hide things in: the sentences of anyone's files, cut into documents of a wanted length."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.files import find, read_text

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_HEADING = re.compile(r"^\s*(=+ .* =+|#+ .*)\s*$")
# WikiText writes joined words and punctuation apart, and marks rare words.
_MARKS = ((re.compile(r" @([-,.])@ "), r"\1"), (re.compile(r" ([,.;:!?%)])"), r"\1"), (re.compile(r"\s*<unk>"), ""))
_SHORTEST = 4
_FOLDER_ENDINGS = ("*.txt", "*.md", "*.txt.gz")
HINT = "Give a text file or a folder of .txt and .md files, for example the test file of WikiText-2."


@dataclass(frozen=True)
class Haystack:
    """Sentences in their order, of one or more files."""

    sentences: Sequence[str]

    @classmethod
    def of(cls, path: str | Path) -> Haystack:
        """The sentences of a file, or of all text files of a folder; headings are left out.

        Raises:
            InvalidInputError: there is no such file, or no sentence in it.
        """
        root = Path(path)
        files = sorted(file for ending in _FOLDER_ENDINGS for file in root.glob(ending)) if root.is_dir() else [root]
        sentences = [sentence for file in files for sentence in _sentences(read_text(find(file)))]
        if not sentences:
            raise InvalidInputError(f"There is no text in {path}.", hint=HINT)
        return cls(sentences)

    def document(self, characters: int, chance: random.Random) -> list[str]:
        """Sentences in their order, from a place drawn at random, of at most `characters` characters together.

        The text is taken as a ring; no sentence occurs twice. Below 90 % of the length a sentence that would be too
        long is passed over for a shorter one.

        Raises:
            InvalidInputError: the text has not enough sentences for even half of that.
        """
        start = chance.randrange(len(self.sentences))
        taken: list[str] = []
        length = -1  # the first sentence has no blank before it
        for step in range(len(self.sentences)):
            sentence = self.sentences[(start + step) % len(self.sentences)]
            if length + 1 + len(sentence) <= characters:
                taken.append(sentence)
                length += 1 + len(sentence)
            elif length >= 0.9 * characters:
                break
        if length < 0.5 * characters:
            raise InvalidInputError(
                f"A document of {characters:,} characters is wanted, the text has sentences for {max(length, 0):,}.",
                hint="Give more text with --data, or other --lengths.",
            )
        return taken


def _sentences(text: str) -> list[str]:
    found = []
    for line in text.split("\n"):
        if _HEADING.match(line):
            continue
        for mark, plain in _MARKS:
            line = mark.sub(plain, line)
        sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(line))
        found += [sentence for sentence in sentences if len(sentence.split()) >= _SHORTEST]
    return found
