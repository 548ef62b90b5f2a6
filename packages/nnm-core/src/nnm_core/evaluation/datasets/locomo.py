"""LoCoMo (Maharana et al. 2024): long conversations in sessions, and questions of five categories about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.files import Row, parse_json
from nnm_core.evaluation.datasets.questions import Collector, Question, QuestionSet

HINT = (
    'A LoCoMo file is [{"sample_id", "conversation": {"session_1_date_time", "session_1": [{"speaker", "dia_id", '
    '"text"}]}, "qa": [{"question", "answer", "evidence", "category"}]}]. The ten conversations of the paper: '
    "data/locomo10.json of github.com/snap-research/locomo."
)
CATEGORIES: Mapping[int, str] = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
ADVERSARIAL = CATEGORIES[5]
# Nothing was said that answers an adversarial question; the paper counts these words as right.
DECLINES = ("no information available", "not mentioned")
_SESSION = re.compile(r"session_(\d+)$")
_TURN = re.compile(r"D\d+:\d+")


@dataclass(frozen=True)
class Conversation:
    """One conversation: its turns are the passages of `questions`, in order, each with speaker and date.

    Attributes:
        id: of the sample.
        questions: with the turns as passages; a question's passages are its evidence.
        dates: turn id -> when its session took place, as the file says it.
    """

    id: str
    questions: QuestionSet
    dates: Mapping[str, str]


def load_locomo(path: str | Path) -> list[Conversation]:
    """Read ``locomo10.json`` and its like.

    A turn becomes ``[date] speaker: text``, with the caption of a shared image behind it. Evidence is named as turns,
    several in one string now and then; names that no turn has are passed over. Questions without an answer are left
    out and counted, adversarial ones get the words of declining as their answer.

    Raises:
        InvalidInputError: a part is missing, or an id comes twice.
    """
    source = Path(path)
    value = parse_json(source, HINT)
    if not isinstance(value, list) or not value:
        raise InvalidInputError(f"{source}: not a list of conversations.", hint=HINT)
    found: dict[str, Conversation] = {}
    for number, item in enumerate(value):
        where = f"{source}, item {number}"
        if not isinstance(item, dict):
            raise InvalidInputError(f"{where}: not an object.", hint=HINT)
        conversation = _conversation(Row(item, where, HINT), str(item.get("sample_id", number)))
        if conversation.id in found:
            raise InvalidInputError(f"{where}: a second conversation is called {conversation.id!r}.", hint=HINT)
        found[conversation.id] = conversation
    return list(found.values())


def _conversation(row: Row, name: str) -> Conversation:
    collector = Collector(name, hint=HINT)
    turns: set[str] = set()
    dates: dict[str, str] = {}
    for turn, date in _turns(row.row("conversation")):
        key = turn.text("dia_id")
        if key in turns:
            turn.fail(f"a second turn is called {key!r}")
        turns.add(key)
        dates[key] = date
        collector.passage(key, _text(turn, date), turn.where)
    for number, qa in enumerate(row.rows("qa")):
        collector.question(_question(qa, f"{name}/{number}", turns), qa.where)
    return Conversation(name, collector.done(), dates)


def _turns(conversation: Row) -> Iterator[tuple[Row, str]]:
    sessions = sorted(
        (int(match[1]), name) for name in conversation.value if (match := _SESSION.match(name)) is not None
    )
    if not sessions:
        conversation.fail("there is no 'session_1'")
    for _, name in sessions:
        date = str(conversation.value.get(f"{name}_date_time") or "")
        for turn in conversation.rows(name):
            yield turn, date


def _text(turn: Row, date: str) -> str:
    image = turn.value.get("blip_caption")
    said = str(turn.value.get("text") or "").strip()
    shared = f" (shares an image: {image})" if image else ""
    if not said and not shared:
        turn.fail("the turn says nothing")
    return f"{f'[{date}] ' if date else ''}{turn.text('speaker')}: {said}{shared}"


def _question(qa: Row, key: str, turns: set[str]) -> Question:
    category = qa.get("category", int)
    if category not in CATEGORIES:
        qa.fail(f"category {category} is none of {', '.join(map(str, CATEGORIES))}")
    evidence = [name for item in _list(qa.value.get("evidence")) for name in _TURN.findall(str(item))]
    known = tuple(dict.fromkeys(name for name in evidence if name in turns))
    answer = qa.value.get("answer")
    answers = DECLINES if category == 5 else (() if answer is None else (str(answer),))
    return Question(key, qa.text("question"), answers, known, CATEGORIES[category])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
