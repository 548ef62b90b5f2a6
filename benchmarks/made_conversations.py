"""Conversations in LoCoMo's format for machines without LoCoMo: generated, so that the gate can be run at all.

Two people tell each other one thing a turn, over several dated sessions. Every thing can be asked for once; nothing is
said twice. What generated talk shows is whether injected turns answer as read ones do; how well a model follows real
talk it does not show.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NAMES = ("Ada", "Bruno", "Carla", "Dmitri", "Elin", "Farid", "Greta", "Hugo", "Iris", "Jonas", "Kirsten", "Liam")
_MONTHS = ("January", "March", "April", "June", "August", "September", "November")
_REPLIES = ("Really? Tell me more next time.", "I had no idea.", "How nice to hear.", "That must have taken long.")
_SINGLE, _TEMPORAL, _MULTI, _ADVERSARIAL = 4, 2, 1, 5


@dataclass(frozen=True)
class Topic:
    """One kind of thing that somebody tells.

    Attributes:
        said: by the one who tells it.
        asked: for it, later.
        both: asked of both people together, if they both tell it.
        when: asked for its date.
        values: what may be told.
    """

    said: str
    asked: str
    both: str
    when: str
    values: tuple[str, ...]


_TOPICS = (
    Topic(
        "I have got a pet at last, a {}.", "Which pet did {name} get?", "Which pets did {a} and {b} get?",
        "When did {name} tell about the new pet?",
        ("parrot", "rabbit", "tortoise", "hamster", "goldfish", "kitten", "puppy", "pony"),
    ),
    Topic(
        "I have begun to learn the {} this week.", "Which instrument does {name} learn?",
        "Which instruments do {a} and {b} learn?", "When did {name} tell about the music lessons?",
        ("cello", "flute", "trumpet", "harp", "clarinet", "violin", "oboe", "drums"),
    ),
    Topic(
        "Next summer I am going to travel to {}.", "Where is {name} going to travel?",
        "Where are {a} and {b} going to travel?", "When did {name} tell about the journey?",
        ("Norway", "Portugal", "Iceland", "Greece", "Ireland", "Morocco", "Japan", "Peru"),
    ),
    Topic(
        "Yesterday I painted the kitchen {}.", "In which colour did {name} paint the kitchen?",
        "In which colours did {a} and {b} paint their kitchens?", "When did {name} tell about the kitchen?",
        ("yellow", "green", "orange", "purple", "white", "blue", "grey", "pink"),
    ),
    Topic(
        "My sister works as a {} now.", "What does the sister of {name} work as?",
        "What do the sisters of {a} and {b} work as?", "When did {name} tell about the sister's work?",
        ("nurse", "pilot", "baker", "judge", "teacher", "gardener", "plumber", "farmer"),
    ),
    Topic(
        "For my birthday they gave me a {}.", "What did {name} get for the birthday?",
        "What did {a} and {b} get for their birthdays?", "When did {name} tell about the birthday?",
        ("telescope", "bicycle", "watch", "tent", "camera", "kettle", "jacket", "compass"),
    ),
)  # fmt: skip


def conversations(count: int = 4, *, seed: int = 0) -> list[dict[str, Any]]:
    """`count` conversations with their questions, as a LoCoMo file holds them."""
    chance = random.Random(seed)  # noqa: S311 - reproducible conversations, no secret
    return [_conversation(f"made-{number}", chance) for number in range(count)]


def _conversation(name: str, chance: random.Random) -> dict[str, Any]:
    a, b = chance.sample(_NAMES, 2)
    told = [(person, topic) for topic in _TOPICS for person in (a, b)]
    # Each tells all but one thing; what is not told can be asked for in vain.
    secrets = [(a, _TOPICS[-1]), (b, _TOPICS[-2])]
    told = [pair for pair in told if pair not in secrets]
    chance.shuffle(told)
    values = {topic: dict(zip((a, b), chance.sample(topic.values, 2), strict=True)) for topic in _TOPICS}
    talk: dict[str, Any] = {"speaker_a": a, "speaker_b": b}
    asked: list[dict[str, Any]] = []
    where: dict[tuple[str, Topic], tuple[str, str]] = {}
    half = len(told) // 2
    for session, part in enumerate((told[:half], told[half:]), 1):
        date = f"{chance.randrange(1, 29)} {_MONTHS[chance.randrange(len(_MONTHS))]} {2020 + session}"
        turns: list[dict[str, str]] = []
        for person, topic in part:
            other = b if person == a else a
            _say(turns, session, person, topic.said.format(values[topic][person]))
            where[person, topic] = turns[-1]["dia_id"], date
            _say(turns, session, other, chance.choice(_REPLIES))
        talk |= {f"session_{session}_date_time": date, f"session_{session}": turns}
    for (person, topic), (turn, date) in where.items():
        asked.append(_asked(topic.asked.format(name=person), values[topic][person], [turn], _SINGLE))
        asked.append(_asked(topic.when.format(name=person), date, [turn], _TEMPORAL))
    for topic in _TOPICS:
        if (a, topic) in where and (b, topic) in where:
            both = ", ".join(values[topic][person] for person in (a, b))
            turns_of = [where[person, topic][0] for person in (a, b)]
            asked.append(_asked(topic.both.format(a=a, b=b), both, turns_of, _MULTI))
    asked += [_asked(topic.asked.format(name=person), None, [], _ADVERSARIAL) for person, topic in secrets]
    return {"sample_id": name, "conversation": talk, "qa": asked}


def _say(turns: list[dict[str, str]], session: int, person: str, text: str) -> None:
    turns.append({"speaker": person, "dia_id": f"D{session}:{len(turns) + 1}", "text": text})


def _asked(question: str, answer: str | None, evidence: Sequence[str], category: int) -> dict[str, Any]:
    found: dict[str, Any] = {"question": question, "evidence": list(evidence), "category": category}
    return found if answer is None else found | {"answer": answer}
