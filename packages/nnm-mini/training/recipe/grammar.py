"""A shallow look at English sentences: subject, verb and rest, dates, names and numbers, by regular expressions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

_IRREGULAR = (
    "went:go took:take made:make became:become began:begin won:win wrote:write led:lead held:hold gave:give found:find "
    "came:come saw:see left:leave built:build grew:grow fell:fall met:meet lost:lose ran:run sold:sell brought:bring "
    "sent:send taught:teach thought:think bought:buy fought:fight kept:keep got:get said:say told:tell knew:know "
    "spoke:speak rose:rise chose:choose drew:draw broke:break drove:drive flew:fly wore:wear stood:stand spent:spend "
    "felt:feel meant:mean paid:pay heard:hear sang:sing threw:throw struck:strike shot:shoot stole:steal sought:seek "
    "caught:catch sat:sit bore:bear laid:lay dealt:deal fled:flee sank:sink shook:shake arose:arise overcame:overcome"
)
_NOT_PAST = (
    "based located called named used united set known born advanced need seed speed hundred indeed noted retired"
)
_NOT_PRESENT = "is was has does as its this his series species states years times"
AUXILIARIES = frozenset("was were is are has have had can could will would may must should".split())
MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "(?:" + "|".join(MONTHS) + ")"
DATE = re.compile(
    rf"(\d{{1,2}} {_MONTH} \d{{4}}|{_MONTH} \d{{1,2}}, \d{{4}}|{_MONTH} \d{{4}}|\d{{1,2}} {_MONTH}|{_MONTH} \d{{1,2}}"
    r"|\b(?:1[0-9]|20)\d\d\b(?!s)|\b(?:1[0-9]|20)\d0s\b|\b\d{1,2}(?:st|nd|rd|th) century\b)"
)
NUMBER = re.compile(
    r"(?<![\w.,/–-])(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?: (?:million|billion|thousand))?"
    r"|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty|hundreds|thousands) "
    r"([a-z]{3,}(?:-[a-z]+)?)"
)
_NAME_WORD = r"(?:[A-Z]\.(?= ?[A-Z])|[A-Z][\w'’.&-]*[\w]|[A-Z])"
NAME = re.compile(
    rf"{_NAME_WORD}(?:(?: (?:of|the|de|la|van|von|and the|of the|for|del|di|al|bin)|,)? (?:{_NAME_WORD}|[IVX]+\b))*"
)
QUOTED = re.compile(r'"([^"]{3,60})"')
PRONOUNS = frozenset({"He", "She", "It", "They"})
_LOWERED = frozenset(
    "The A An This These Those Its His Her Their Most Many Some All Both Several Each Another One Two Three Other Such "
    "In On At During After Before Modern Early".split()
)
STOP = frozenset(
    "the a an of in on at by to from with for and or as is was were are be been has had have it its he she his her they "
    "their that this which who whom whose what when where how many did does do into after before during between under "
    "over about also not but than then there these those such most more one two first other near year date".split()
)
_BEFORE_NO_VERB = frozenset(
    "to who which that and or of the a an by not never best most well his her its their in with from for more as".split()
)
_CLAUSE = re.compile(
    r", (?:which|who|where|and|but|although|though|while|with|as|including|whose|when|after|because|so)\b"
    r"|; | – | but | although | while | because "
)
_ADVERBIAL = re.compile(r"^((?:In|On|At|During|By|After|Since|From|Before|Around|Until) [^,]{2,45}), (.+)$")


@cache
def lexicon() -> dict[str, dict[str, str] | list[str]]:
    """The counted lexicon of `make_lexicon.py`."""
    loaded: dict[str, dict[str, str] | list[str]] = json.loads(
        (Path(__file__).parent / "lexicon.json").read_text(encoding="utf-8")
    )
    return loaded


@cache
def past_forms() -> dict[str, str]:
    """Past form -> base form."""
    counted = lexicon()["past"]
    assert isinstance(counted, dict)
    forms = {word: base for word, base in counted.items() if word not in _NOT_PAST.split()}
    return {**forms, **dict(pair.split(":") for pair in _IRREGULAR.split())}


@cache
def present_forms() -> dict[str, str]:
    """Third-person form -> base form."""
    counted = lexicon()["present"]
    assert isinstance(counted, dict)
    return {word: base for word, base in counted.items() if word not in _NOT_PRESENT.split()}


@cache
def given_names() -> frozenset[str]:
    """Given names counted from the first lines of biographies."""
    return frozenset(name for name in lexicon()["given"] if name.lower() not in STOP)


@dataclass(frozen=True)
class Clause:
    """`adverbial, subject auxiliary|verb rest`; `base` is empty where the auxiliary itself is asked with."""

    adverbial: str
    subject: str
    auxiliary: str
    base: str
    verb: str
    rest: str

    def ask(self, word: str, subject: str, rest: str) -> str:
        """`Where did Anna live in 1990`: question word, auxiliary, subject, base form, rest."""
        return f"{word} {self.auxiliary} {subject} {self.base} {rest}"


def content_words(text: str) -> set[str]:
    """Lower-case words of three letters or more that are no stop words."""
    return {word for word in re.findall(r"[a-z0-9]{3,}", text.lower()) if word not in STOP}


def trim(text: str) -> str:
    """Single spaces, no punctuation at the end."""
    return re.sub(r"[\s,;:]+$", "", re.sub(r"\s+", " ", text)).strip()


def lower_first(text: str) -> str:
    """`The house` -> `the house`, names stay."""
    return text[0].lower() + text[1:] if text and text.split(" ", 1)[0] in _LOWERED else text


def shorten(text: str, rng: Random, words: int | None = None) -> str:
    """Up to the first clause border, and to 6-13 words, not ending in a stop word."""
    border = _CLAUSE.search(text)
    if border and border.start() > 8:
        text = text[: border.start()]
    parts = text.split(" ")
    limit = words or rng.randint(6, 13)
    if len(parts) <= limit:
        return text
    parts = parts[:limit]
    while len(parts) > 2 and parts[-1] in STOP:
        parts.pop()
    return " ".join(parts)


def is_person(name: str) -> bool:
    """Whether a name starts with a given name and has another word."""
    return " " in name and name.split(" ")[0] in given_names()


def parse(sentence: str) -> Clause | None:
    """The main clause of a simple declarative sentence, or None where the shallow look is not sure."""
    text = re.sub(r" ?\([^)]*\)", "", sentence).strip().rstrip(".!?")
    adverbial = ""
    found = _ADVERBIAL.match(text)
    if found:
        adverbial, text = found[1], found[2]
    words = text.split(" ")
    at = _verb_index(words)
    if at is None:
        return None
    subject, verb, rest = " ".join(words[:at]), words[at], " ".join(words[at + 1 :])
    odd = ("There", "However", "Although", "While", "When", "If", "As ", "That", "What", "Because", "Since")
    if "," in subject or len(subject) > 70 or subject.startswith(odd):
        return None
    if verb in AUXILIARIES:
        following = words[at + 1] if at + 1 < len(words) else ""
        perfect = following in past_forms() or following in ("been", "become", "made", "won", "also")
        if verb in ("has", "have", "had") and not perfect:
            return Clause(adverbial, subject, {"has": "does", "have": "do", "had": "did"}[verb], "have", verb, rest)
        return Clause(adverbial, subject, verb, "", verb, rest)
    if verb in past_forms():
        return Clause(adverbial, subject, "did", past_forms()[verb], verb, rest)
    return Clause(adverbial, subject, "does", present_forms()[verb], verb, rest)


def _verb_index(words: list[str]) -> int | None:
    if len(words) < 5:
        return None
    at: int | None = None
    for i in range(1, min(12, len(words) - 1)):
        if words[i] in AUXILIARIES:
            at = i
            break
        if words[i - 1].endswith(",") and i > 1:
            return None
    for i in range(1, min(9, at or 9, len(words) - 1)):
        word, following = words[i], words[i + 1]
        if words[i - 1] in _BEFORE_NO_VERB:
            continue
        is_past = word in past_forms()
        if (
            is_past
            and at is not None
            and following in ("by", "in", "on", "at", "from", "to", "as", "with", "for", "near")
        ):
            continue  # a participle behind its noun: the auxiliary that follows is the verb
        if is_past or (word in present_forms() and following[:1].islower() and words[i - 1][:1].isupper()):
            return i
    return at
