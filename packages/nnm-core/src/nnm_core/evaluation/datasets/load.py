"""One door to every question-answering format: by its content, by a name, or from the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets import natural, plain, squad, triviaqa
from nnm_core.evaluation.datasets.files import find, read_text
from nnm_core.evaluation.datasets.questions import QuestionSet

Format = Literal["squad", "triviaqa", "nq", "plain"]
FORMATS: tuple[str, ...] = get_args(Format)
HINT = f"Known formats: {', '.join(FORMATS)}. {squad.HINT} {triviaqa.HINT} {natural.HINT} {plain.HINT}"


def load_questions(
    path: str | Path, *, format: Format | None = None, evidence: str | Path | None = None
) -> QuestionSet:
    """Read a file of questions.

    Args:
        path: may be compressed.
        format: recognised by the content if left out.
        evidence: folder of documents for TriviaQA.

    Raises:
        InvalidInputError: no such file, an unknown format, or a broken file.
    """
    source = find(Path(path))
    if format is not None and format not in FORMATS:
        raise InvalidInputError(f"{format!r} is no known format.", hint=f"Known formats: {', '.join(FORMATS)}.")
    loaders: dict[str, Callable[[Path], QuestionSet]] = {
        "squad": squad.load_squad,
        "triviaqa": lambda file: triviaqa.load_triviaqa(file, evidence=evidence),
        "nq": natural.load_nq,
        "plain": plain.load_plain,
    }
    return loaders[format or recognise(source)](source)


def recognise(path: Path) -> Format:
    """The format of a file, from its first JSON value.

    Raises:
        InvalidInputError: it looks like none of them.
    """
    text = read_text(path).lstrip()
    lines = [line for line in text.split("\n", 64) if line.strip()]
    try:
        first = json.loads(lines[0]) if lines else None
    except json.JSONDecodeError:
        first = None  # one JSON value over several lines
    if isinstance(first, dict) and "question" in first and not {"passages", "context"} & first.keys():
        return "nq"
    if isinstance(first, dict) and {"question", "qas", "context", "passages"} & first.keys():
        return "plain"
    head = text[:4096]
    if text.startswith("[") and '"question"' in head:
        return "nq"
    if '"Data"' in head or '"Data"' in text[-4096:] or '"QuestionId"' in head:
        return "triviaqa"
    if text.startswith("{") and ('"paragraphs"' in text or '"data"' in head):
        return "squad"
    raise InvalidInputError(f"{path}: none of the formats {', '.join(FORMATS)}.", hint=HINT)
