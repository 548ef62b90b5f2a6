"""Question-answer pairs from single sentences, by rule. Every answer is a substring of the sentence."""

from __future__ import annotations

import re
from random import Random

from recipe.grammar import (
    DATE,
    MONTHS,
    NAME,
    NUMBER,
    PRONOUNS,
    QUOTED,
    STOP,
    Clause,
    content_words,
    is_person,
    lower_first,
    parse,
    past_forms,
    shorten,
    trim,
)

Candidate = tuple[str, str, float]
"""A question, its answer, the weight it is drawn with."""

_SYNONYMS: dict[str, tuple[str, ...]] = {}
for _pair in [
    "founded/established",
    "founded/created",
    "located/situated",
    "began/started",
    "begin/start",
    "film/movie",
    "largest/biggest",
    "area/region",
    "built/constructed",
    "build/construct",
    "completed/finished",
    "complete/finish",
    "received/got",
    "receive/get",
    "obtain/get",
    "released/issued",
    "main/primary",
    "company/firm",
    "song/track",
    "album/record",
    "author/writer",
    "named/called",
    "produced/made",
    "produce/make",
    "country/nation",
    "approximately/about",
    "about/roughly",
    "home/residence",
    "help/assist",
    "moved/relocated",
    "bought/purchased",
    "buy/purchase",
    "used/utilized",
    "show/display",
    "include/contain",
    "includes/contains",
    "play/perform",
    "job/occupation",
    "ended/finished",
    "end/finish",
    "often/frequently",
    "usually/typically",
    "people/individuals",
    "war/conflict",
    "original/initial",
    "entire/whole",
    "discovered/found",
    "discover/find",
    "leader/head",
    "required/needed",
    "require/need",
    "appeared/featured",
    "allow/let",
    "increase/rise",
    "decrease/decline",
    "launched/started",
    "publish/issue",
    "designed/planned",
    "destroyed/ruined",
    "students/pupils",
    "highest/tallest",
    "composed/wrote",
    "develop/create",
    "developed/created",
]:
    _left, _right = _pair.split("/")
    _SYNONYMS[_left] = (*_SYNONYMS.get(_left, ()), _right)
    _SYNONYMS[_right] = (*_SYNONYMS.get(_right, ()), _left)
_VAGUE = ("His", "Her", "Its", "Their", "This", "These", "Many", "Some", "Most", "Several", "Such", "Both")
_OBJECT = re.compile(
    r"^((?:a|an|the) [^,;.]{4,80}?)(?=(?: (?:that|which|who|in|on|at|from|by|with|for|when|where|during|after|before"
    r"|because|to|and was|and is|and has|located|based|founded|published|released|used) )|,|;|$)"
)
_BARE_OBJECT = re.compile(
    r"^((?:[a-z-]+ ){0,3}[a-z-]+)(?= (?:in|on|at|from|by|with|for|to|during|after|before|and|that|which) |,|;|$)"
)


def when(date: str, rng: Random) -> str:
    """A question word for a date."""
    if re.fullmatch(r"\d{4}", date):
        return rng.choice(["When", "When", "In what year", "In which year", "What year"])
    return rng.choice(
        ["When", "When", "On what date" if "century" not in date and not date.endswith("s") else "In what period"]
    )


def with_synonyms(question: str, rng: Random) -> str:
    """In half of the questions, some words are replaced by a synonym."""
    if rng.random() < 0.5:
        return question
    words = question.split(" ")
    return " ".join(rng.choice(_SYNONYMS[w]) if w in _SYNONYMS and rng.random() < 0.3 else w for w in words)


def polish(question: str, rng: Random) -> str:
    """Single spaces, a capital letter, a question mark."""
    question = re.sub(r" ([,;:])", r"\1", re.sub(r"\s+", " ", question).strip().rstrip(" ,;:.?!"))
    question = with_synonyms(question, rng)
    question = question[:1].upper() + question[1:]
    if rng.random() < 0.03:
        question = "According to the text, " + question[:1].lower() + question[1:]
    return question if rng.random() < 0.03 else question + "?"


def named_subject(clause: Clause, title: str) -> str:
    """The subject with a pronoun replaced by what the article is about."""
    first, _, others = clause.subject.partition(" ")
    if clause.subject in PRONOUNS:
        return title
    if first in ("His", "Her", "Its", "Their"):
        return f"{title}'s {others}"
    return lower_first(clause.subject)


def _subject(clause: Clause, rng: Random) -> list[Candidate]:
    subject, rest = clause.subject, trim(clause.rest)
    first = subject.split(" ")[0]
    usable = subject[0].isupper() and subject not in PRONOUNS and first not in _VAGUE and len(subject.split(" ")) <= 6
    if not usable or len(rest.split(" ")) < 3:
        return []
    answer = re.sub(r"^(?:The|A|An) ", "", subject) if rng.random() < 0.5 else subject
    last = subject.split(" ")[-1]
    word = "Who" if is_person(subject) else "What"
    if word == "What" and first == "The" and last.islower() and rng.random() < 0.4:
        word = rng.choice(["Which", "What"]) + " " + last
    return [(f"{word} {clause.verb} {shorten(rest, rng)}", answer, 3)]


def _adverbial(clause: Clause, subject: str, rng: Random) -> list[Candidate]:
    if not clause.adverbial:
        return []
    preposition, _, answer = clause.adverbial.partition(" ")
    rest = shorten(trim(clause.rest), rng)
    date = DATE.search(answer)
    if date:
        return [(clause.ask(when(date[1], rng), subject, rest), date[1], 4)]
    if preposition in ("In", "At", "On") and answer[0].isupper():
        return [(clause.ask("Where", subject, rest), answer, 2)]
    if preposition in ("After", "During", "Before"):
        return [(clause.ask(rng.choice([f"{preposition} what", "When"]), subject, rest), answer, 1)]
    return []


def _dates(clause: Clause, subject: str, rng: Random) -> list[Candidate]:
    out: list[Candidate] = []
    rest = trim(clause.rest)
    for date in list(DATE.finditer(rest))[:3]:
        before = re.search(r"\b(?:in|on|since|around|by|during) (?:the |early |late |mid-)*$", rest[: date.start()])
        if not before:
            continue
        lead = " ".join(trim(rest[: before.start()]).split(" ")[-14:])
        after = (
            shorten(trim(rest[date.end() :]), rng, 6)
            if rng.random() < 0.4 and rest[date.end() : date.end() + 1] != ","
            else ""
        )
        out.append((clause.ask(when(date[1], rng), subject, f"{lead} {after}"), date[1], 4))
    return out


def _agent(clause: Clause, subject: str, rng: Random) -> list[Candidate]:
    found = re.search(
        rf"^(?:\w+ly )?(\w+(?:ed|en|wn|lt|ld|un|de|it|ne|ught)) (.{{0,60}}?)\bby ({NAME.pattern})", clause.rest
    )
    if (
        clause.base
        or clause.auxiliary not in ("was", "were", "is", "are")
        or not found
        or found[3].split(" ")[0] in MONTHS
    ):
        return []
    participle, middle, answer = found[1], found[2], found[3].split(",")[0]
    if participle in past_forms() and rng.random() < 0.6:
        return [(f"Who {participle} {subject} {middle}", answer, 4)]
    if rng.random() < 0.6:
        return [(f"Who {clause.auxiliary} {subject} {participle} {middle} by", answer, 4)]
    return [(f"By whom {clause.auxiliary} {subject} {participle} {middle}", answer, 4)]


def _object(clause: Clause, subject: str, rng: Random) -> list[Candidate]:
    rest = trim(clause.rest)
    found = _OBJECT.match(rest)
    if found:
        answer = found[1] if rng.random() < 0.55 else re.sub(r"^(?:a|an|the) ", "", found[1])
        if not clause.base and clause.auxiliary in ("is", "was", "are", "were"):
            return [(f"{'Who' if is_person(subject) else 'What'} {clause.auxiliary} {subject}", answer, 3)]
        if clause.base and len(answer.split(" ")) <= 9:
            after = shorten(trim(rest[found.end() :]), rng, 6) if rng.random() < 0.6 else ""
            return [(clause.ask("What", subject, after), answer, 3)]
        return []
    bare = _BARE_OBJECT.match(rest) if clause.base else None
    if bare and bare[1].split(" ")[0] not in STOP and not bare[1].split(" ")[0].endswith("ly") and rest[bare.end() :]:
        return [(clause.ask("What", subject, shorten(trim(rest[bare.end() :]), rng, 7)), bare[1], 2)]
    return []


def _reason_and_name(clause: Clause, subject: str, rng: Random) -> list[Candidate]:
    out: list[Candidate] = []
    rest = trim(clause.rest)
    why = re.search(r" (because|due to|in order to|so that) ([^.;]{8,80})$", rest)
    if why:
        out.append(
            (clause.ask("Why", subject, trim(rest[: why.start()])), why[2] if rng.random() < 0.6 else why[0].strip(), 3)
        )
    called = re.search(
        r'\b(?:called|named|known as|titled|entitled|nicknamed) (?:the )?"?([A-Z][^,;."]{2,40})(?=[,;."]|$)', rest
    )
    if called:
        out.append((clause.ask("What", subject, trim(rest[: called.start(1)].rstrip('"'))), called[1].strip(), 3))
    return out


def _names(clause: Clause, subject: str, rng: Random) -> list[Candidate]:
    out: list[Candidate] = []
    rest = trim(clause.rest)
    for found in list(NAME.finditer(rest))[:5]:
        name, before = found[0], rest[: found.start()].rstrip()
        preposition = before.split(" ")[-1] if before else ""
        if name.split(" ")[0] in MONTHS or len(name) < 3:
            continue
        if preposition not in (
            "in",
            "at",
            "near",
            "from",
            "to",
            "outside",
            "into",
            "for",
            "with",
            "of",
            "on",
            "against",
            "as",
        ):
            continue
        body = " ".join(trim(before[: -len(preposition)]).split(" ")[-14:])
        after = (
            shorten(trim(rest[found.end() :]), rng, 6)
            if rng.random() < 0.4 and rest[found.end() :][:1] not in ",;"
            else ""
        )
        if preposition in ("in", "at", "near", "outside") and not is_person(name) and rng.random() < 0.8:
            out.append((clause.ask("Where", subject, f"{body} {after}"), name, 3))
        elif rng.random() < 0.5:
            word = "Who" if is_person(name) else "What"
            out.append((clause.ask(word, subject, f"{body} {preposition} {after}"), name, 2))
        else:
            word = "whom" if is_person(name) else "what"
            out.append((clause.ask(f"{preposition} {word}", subject, f"{body} {after}"), name, 2))
    return out


def _numbers(sentence: str, clause: Clause | None, subject: str, rng: Random) -> list[Candidate]:
    out: list[Candidate] = []
    for found in list(NUMBER.finditer(sentence))[:3]:
        number, unit = found[1], found[2]
        if unit in STOP or unit in ("until", "when") or re.fullmatch(r"(1[5-9]|20)\d\d", number):
            continue
        before, after = sentence[: found.start()], trim(sentence[found.end() :])
        if clause and clause.base and before.endswith(clause.verb + " "):
            out.append((clause.ask(f"How many {unit}", subject, shorten(after, rng, 8)), number, 4))
        else:
            out.append((_cloze(before, after, f"how many {unit}", rng), number, 2.5))
    return out


def _cloze(before: str, after: str, word: str, rng: Random) -> str:
    """The words around the answer, thinned out, behind a question word: noisy, but never the sentence itself."""

    def thin(words: list[str]) -> list[str]:
        return [w for w in words if w and rng.random() > (0.25 if w in STOP else 0.06)]

    left = thin(before.split(" ")[-rng.randint(4, 10) :])
    right = thin(after.split(" ")[: rng.randint(3, 9)])
    if rng.random() < 0.3:
        left, right = right, left
    return f"{word} {' '.join(left + right)}"


def _cloze_questions(sentence: str, title: str, rng: Random) -> list[Candidate]:
    spans = [(m.start(), m.end(), "name") for m in NAME.finditer(sentence) if m.start() > 0 and len(m[0]) > 2]
    spans += [(m.start(1), m.end(1), "date") for m in DATE.finditer(sentence)]
    spans += [(m.start(1), m.end(1), "title") for m in QUOTED.finditer(sentence)]
    rng.shuffle(spans)
    out: list[Candidate] = []
    for start, end, kind in spans[:3]:
        answer, before, after = sentence[start:end], sentence[:start].rstrip(' "'), sentence[end:].lstrip(' "')
        if answer.split(" ")[0] in MONTHS and kind == "name":
            continue
        preposition = before.split(" ")[-1].lower()
        word = "when" if kind == "date" else "who" if is_person(answer) else "what"
        if word == "what" and preposition in ("in", "at", "near") and rng.random() < 0.6:
            word = "where"
        first, _, others = before.partition(" ")
        before = f"{title} {others}" if first in PRONOUNS else before
        if rng.random() < 0.75:
            out.append((_cloze(before, after, word, rng), answer, 1))
        else:
            words = sorted(content_words(before + " " + after))
            keywords = rng.sample(words, min(rng.randint(3, 6), len(words)))
            out.append((f"{word} {' '.join(keywords)}", answer, 0.7))
    return out


def pairs_of(sentence: str, title: str, rng: Random, most: int) -> list[tuple[str, str]]:
    """Up to `most` (question, answer) pairs about one sentence of an article; every answer stands in the sentence."""
    title = re.sub(r"\s*\([^)]*\)$", "", title)
    text = sentence.strip().rstrip(".!?")
    clause = parse(sentence)
    subject = named_subject(clause, title) if clause else ""
    candidates = _numbers(text, clause, subject, rng) + _cloze_questions(text, title, rng)
    if clause:
        candidates += _subject(clause, rng)
        for rule in (_adverbial, _dates, _agent, _object, _reason_and_name, _names):
            candidates += rule(clause, subject, rng)
    out: list[tuple[str, str]] = []
    seen: set[str] = set()
    while candidates and len(out) < most:
        index = rng.choices(range(len(candidates)), [weight for _, _, weight in candidates])[0]
        question, answer, _ = candidates.pop(index)
        answer = answer.strip(' ,;:"')
        if (
            not answer
            or len(answer) > 100
            or answer in seen
            or answer not in sentence
            or answer.lower() in question.lower()
        ):
            continue
        question = polish(question, rng)
        enough = len(question.split(" ")) > 3 and len(content_words(question)) > 1
        if enough and 12 < len(question) < 200 and question.count('"') % 2 == 0:
            seen.add(answer)
            out.append((question, answer))
    return out
