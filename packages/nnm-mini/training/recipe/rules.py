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
from recipe.synonyms import with_synonyms

Candidate = tuple[str, str, float]
"""A question, its answer, the weight it is drawn with."""

_VAGUE = ("His", "Her", "Its", "Their", "This", "These", "Many", "Some", "Most", "Several", "Such", "Both")
_NO_START = frozenset(
    "Though Typically Sometimes Usually Often Realising During After Before By In On At From Early Later Then "
    "Also He She "
    "They It There Here However Both Although While What Who Numerous Other Others One Two Three Not".split()
)
_NO_ENDING = frozenset("also then later than he she it they there who which that as not often now still first".split())
_OBJECT = re.compile(
    r"^((?:a|an|the) [^,;.]{4,80}?)(?=(?: (?:that|which|who|in|on|at|from|by|with|for|when|where|during|after|before"
    r"|because|to|and was|and is|and has|located|based|founded|published|released|used) )|,|;|$)"
)
_BARE_OBJECT = re.compile(
    r"^((?:[a-z-]+ ){0,3}[a-z-]+)(?= (?:in|on|at|from|by|with|for|to|during|after|before|and|that|which) |,|;|$)"
)

_CATEGORIES = frozenset(
    "river county university college museum church party award prize war battle school island islands mountains "
    "mountain lake sea ocean valley company corporation street road highway bridge station airport railway league cup "
    "championship club team band album festival act treaty empire kingdom dynasty republic province state "
    "district city "
    "park forest desert bay cathedral palace castle temple theatre hospital army navy corps council committee court "
    "commission department ministry institute society association foundation union movement language family period era "
    "age revolution conference agency bank newspaper magazine journal channel network theory law".split()
)
_MEASURE = re.compile(
    r"((?:[$€£]\d[\d,.]*\d?(?: (?:million|billion|trillion))?)|\d[\d.,]*\d?(?:%| percent| per cent)"
    r"|\d[\d.,]* (km|miles|metres|m|feet|kg|tonnes|acres|hectares)\b)"
)
_APPOSITION = re.compile(rf"\b({NAME.pattern}), (?P<article>an?|the) (?P<what>[a-z][^,;().]{{6,60}}), ")
_OFFICE = re.compile(
    r"\b(?:is|was) (?:the )?(capital(?: city)?|largest "
    r"city|seat|president|king|queen|founder|author|director|leader|mayor"
    r"|county seat|currency|official language) of ((?:the )?[A-Z][^,.;()]{2,40})"
)


def when(date: str, rng: Random) -> str:
    """A question word for a date."""
    if re.fullmatch(r"\d{4}", date):
        return rng.choice(["When", "When", "In what year", "In which year", "What year"])
    return rng.choice(
        ["When", "When", "On what date" if "century" not in date and not date.endswith("s") else "In what period"]
    )


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
    ending = subject.split(" ")[-1]
    if ending.endswith("ly") or ending.lower() in _NO_ENDING or first in _NO_START:
        return []
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
            out.append(
                (
                    _in_place(before, after, f"how many {unit}", rng)
                    if rng.random() < 0.6
                    else _cloze(before, after, f"how many {unit}", rng),
                    number,
                    1.5,
                )
            )
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


def _asked_for(answer: str, kind: str, preposition: str, rng: Random) -> str:
    """The words that ask for a span: `what year`, `who`, `which river`, `where`, `what`."""
    if kind == "date":
        if re.fullmatch(r"\d{4}", answer):
            return rng.choice(["what year", "which year", "when"])
        return "when" if rng.random() < 0.5 or "century" in answer else "what date"
    if is_person(answer):
        return "who"
    last = answer.split(" ")[-1].lower()
    if " " in answer and last in _CATEGORIES and rng.random() < 0.8:
        return rng.choice(["what ", "which "]) + last
    if preposition in ("in", "at", "near") and kind == "name" and rng.random() < 0.5:
        return "where"
    return "what"


def _in_place(before: str, after: str, word: str, rng: Random) -> str:
    """The sentence itself with the question words where the answer stood, cut at clause borders."""
    word = "what time" if word == "when" and not before.endswith((" in", " on", " since", " until")) else word
    if word in ("when", "where"):
        before = re.sub(r" (?:in|on|at|near)$", "", before)
    left = re.split(r"; | – |, (?=which|who|where|and|but|while|although)|\((?=[^)]*$)", before)[-1]
    left = re.sub(r"^(?:and|but|which|who|where|while|although) ", "", left.strip())
    words = left.split(" ")
    if len(words) > 16:
        return ""
    right = shorten(trim(after), rng, rng.randint(3, 9)) if after[:1] not in ",;.)" else ""
    return f"{lower_first(left)} {word} {right}"


def _spans(sentence: str, rng: Random) -> list[tuple[int, int, str]]:
    spans = [(m.start(), m.end(), "name") for m in NAME.finditer(sentence) if m.start() > 0 and len(m[0]) > 2]
    spans += [(m.start(1), m.end(1), "date") for m in DATE.finditer(sentence)]
    spans += [(m.start(1), m.end(1), "title") for m in QUOTED.finditer(sentence)]
    rng.shuffle(spans)
    return spans


def _cloze_questions(sentence: str, title: str, rng: Random) -> list[Candidate]:
    out: list[Candidate] = []
    for start, end, kind in _spans(sentence, rng)[:4]:
        answer, before, after = sentence[start:end], sentence[:start].rstrip(' "'), sentence[end:].lstrip(' "')
        if answer.split(" ")[0] in MONTHS and kind == "name":
            continue
        if kind == "name" and (after[:1].isupper() or sentence[end : end + 1] in ("'", "’", "-") or "-" in answer):
            continue  # a part of a longer name, or an adjective
        word = _asked_for(answer, kind, before.split(" ")[-1].lower(), rng)
        first, _, others = before.partition(" ")
        before = f"{title} {others}" if first in PRONOUNS else before
        share = rng.random()
        if share < 0.62:
            question = _in_place(before, after, word, rng)
            if len(content_words(question)) > 2:
                out.append((question, answer, 2))
        elif share < 0.92:
            out.append((_cloze(before, after, word, rng), answer, 0.6))
        else:
            words = sorted(content_words(before + " " + after))
            keywords = rng.sample(words, min(rng.randint(3, 6), len(words)))
            out.append((f"{word} {' '.join(keywords)}", answer, 0.3))
    return out


def _measures(sentence: str, clause: Clause | None, subject: str, rng: Random) -> list[Candidate]:
    """Shares, amounts of money, lengths: `What percentage of the land is forest?`"""
    out: list[Candidate] = []
    for found in list(_MEASURE.finditer(sentence))[:2]:
        before, after = sentence[: found.start()].rstrip(), trim(sentence[found.end() :])
        share = "%" in found[0] or "percent" in found[0] or "per cent" in found[0]
        word = "what percentage" if share else "how much"
        if not share and not found[0].startswith(("$", "€", "£")):
            word = rng.choice(["what length", "what distance"]) if found[2] in ("km", "miles", "metres", "m") else word
        if share and after.startswith("of "):
            rest = shorten(after, rng, rng.randint(5, 10))
            out.append((f"{word} {rest}", found[0], 3))
        elif clause and clause.base and before.endswith(clause.verb):
            out.append((clause.ask("How much", subject, shorten(after, rng, 8)), found[0], 3))
        else:
            out.append((_in_place(before, after, word, rng), found[0], 1.5))
    return out


def _apposition(sentence: str, rng: Random) -> list[Candidate]:
    """`Anna Berg, a Norwegian engineer, ...`: who is Anna Berg, and who was the Norwegian engineer that ..."""
    found = _APPOSITION.search(sentence)
    if not found or found[1].split(" ")[0] in MONTHS:
        return []
    name, description = found[1], found["what"]
    word = "Who" if is_person(name) else "What"
    out: list[Candidate] = [(f"{word} {rng.choice(['is', 'was'])} {name}", f"{found['article']} {description}", 2)]
    out.append((f"{word} {rng.choice(['is', 'was'])} the {description}", name, 2))
    return out


def _life(sentence: str, title: str, rng: Random) -> list[Candidate]:
    """Birth, death, nationality, occupation and office from the first sentence of an article."""
    out: list[Candidate] = []
    date = DATE.pattern[1:-1]
    both = re.match(rf"^.{{3,60}}? \([^)]*?({date}) ?[–-] ?({date})\)", sentence)
    born = re.match(rf"^.{{3,60}}? \([^)]*?(?:born|b\.)[^)]*?({date})(?:,? in ([A-Z][^);]+))?", sentence)
    birth = [f"When was {title} born", f"What is {title}'s date of birth", f"On what day was {title} born"]
    death = [f"When did {title} die", f"What is the date of death of {title}", f"When was {title}'s death"]
    if both:
        out += [(rng.choice(birth), both[1], 5), (rng.choice(death), both[2], 5)]
    elif born:
        out.append((rng.choice(birth), born[1], 5))
        if born[2]:
            out.append((rng.choice([f"Where was {title} born", f"What is {title}'s birthplace"]), born[2], 5))
    what = re.match(
        r"^.{3,90}? (?:is|was) an? ((?:[A-Z][a-z]+(?:-[A-Z][a-z]+)?) )?([a-z][a-z ,-]{3,60}?)"
        r"(?= (?:who|that|which|from|in|for|of|and [A-Z]|best|known|by|born|with|at)|[.,;]|$)",
        sentence,
    )
    if what:
        person = is_person(title) or bool(both or born)
        if what[1] and what[1].strip().endswith(("an", "ish", "ese", "ch", "i", "ic")):
            out.append(
                (
                    rng.choice([f"What nationality is {title}", f"What is the nationality of {title}"]),
                    what[1].strip(),
                    2,
                )
            )
        asked = [f"What is the occupation of {title}", f"What is {title}'s profession", f"What does {title} do"]
        out.append(
            (rng.choice(asked if person else [f"What is {title}", f"What kind of thing is {title}"]), what[2], 2)
        )
    people = re.search(r"\bpopulation (?:of|was|is)(?: \w+){0,4} (\d[\d,.]*\d)", sentence)
    if people:
        asked = [
            f"What is the population of {title}",
            f"How many people live in {title}",
            f"How many inhabitants does {title} have",
        ]
        out.append((rng.choice(asked), people[1], 4))
    office = _OFFICE.search(sentence)
    if office:
        word = "Who" if is_person(title) else "What"
        out.append(
            (
                rng.choice([f"{word} is the {office[1]} of {office[2]}", f"Name the {office[1]} of {office[2]}"]),
                title,
                3,
            )
        )
    return out


def pairs_of(sentence: str, title: str, rng: Random, most: int, lead: bool = False) -> list[tuple[str, str]]:
    """Up to `most` (question, answer) pairs about one sentence of an article; every answer stands in the sentence.

    `lead`: it is the first sentence of the article, which says who or what the title is.
    """
    title = re.sub(r"\s*\([^)]*\)$", "", title)
    text = sentence.strip().rstrip(".!?")
    clause = parse(sentence)
    subject = named_subject(clause, title) if clause else ""
    candidates = _numbers(text, clause, subject, rng) + _cloze_questions(text, title, rng)
    candidates += _measures(text, clause, subject, rng) + _apposition(text, rng)
    if lead:
        candidates += _life(sentence.strip(), title, rng)
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
