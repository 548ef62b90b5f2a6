"""Reading examples: passages with questions, distractors, questions that cannot be answered, needles in articles.

An example is a list of `layout.Segment`. About one question turn in six is unanswerable, in five ways
(`_unanswerable`).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from recipe.corpus import Document, passages, sentences
from recipe.events import Events
from recipe.facts import Fact, Generator
from recipe.grammar import DATE, NAME, content_words
from recipe.layout import ANSWER, CONTEXT, DONT_KNOW, MARKUP, NO_LOSS, Segment, chat, lay_out, writer_layout
from recipe.reading_sets import Reading
from recipe.rules import pairs_of
from recipe.synonyms import opposite

Pair = tuple[str, str]
Segments = list[Segment]
LONGEST_CONTEXT = 12000
"""Characters of context in one example at most: fewer than 4,096 tokens."""


@dataclass
class Passage:
    """A passage and the questions that it answers.

    `declined`: questions that it does not answer, with their answer where another passage of the article has it, else
    with an empty one.
    """

    text: str
    pairs: list[Pair] = field(default_factory=list)
    declined: list[Pair] = field(default_factory=list)


@dataclass
class Article:
    """Passages of one source; the title may be empty.

    `checked`: a model has read `declined` of its passages, so that no question need be guessed to be unanswerable.
    """

    title: str
    passages: list[Passage]
    checked: bool = False


def article_by_rule(document: Document, rng: Random, most_passages: int = 6) -> Article:
    """Cut a document into passages and ask each by rule."""
    texts = passages(document.text[:40000], rng.randint(60, 200))
    if len(texts) > most_passages:
        start = rng.randrange(len(texts) - most_passages + 1) if rng.random() < 0.6 else 0
        texts = texts[start : start + most_passages]
    article = Article(document.title, [])
    for text in texts:
        parts = sentences(text)
        first = parts[0] if parts and document.text.startswith(text[:60]) else None
        rng.shuffle(parts)
        pairs: list[Pair] = []
        for sentence in parts[:7]:
            if 30 < len(sentence) < 420:
                lead = sentence is first
                pairs += pairs_of(sentence, document.title, rng, rng.choice([1, 1, 2]) + lead, lead)
        article.passages.append(Passage(text, pairs[:9]))
    _cross_questions(document, article, rng)
    return article


def _cross_questions(document: Document, article: Article, rng: Random) -> None:
    """Questions made from the article's first sentences, put to other passages of it that hold the answer.

    The wording then differs from the passage's own, as in natural questions. At least two content words besides the
    title
    and the answer must be shared, so that the passage is likely to support the answer.
    """
    known = content_words(document.title)
    for number, sentence in enumerate(sentences(document.text[:1500].replace("\n", " "))[:6]):
        for question, answer in pairs_of(sentence, document.title, rng, 2, number == 0):
            for passage in article.passages:
                if len(answer) < 3 or sentence in passage.text or answer not in passage.text:
                    continue
                asked = content_words(question) - known - content_words(answer)
                if len(asked & content_words(passage.text)) >= 2 and len(passage.pairs) < 9:
                    passage.pairs.append((question, answer))
                    break


def _measured(text: str, question: str, answer: str) -> Segments:
    head, _, tail = chat(["\0"], question).partition("\0")
    context = [Segment(head, MARKUP), Segment(text, CONTEXT), Segment(tail, MARKUP)]
    return [*context, Segment(f" {answer}<|im_end|>", ANSWER)]


class Builder:
    """Makes examples; remembers passages and questions of earlier articles as distractors and foreign questions."""

    def __init__(self, rng: Random, unanswerable: float = 0.15) -> None:
        self.rng, self.unanswerable = rng, unanswerable
        self.generator = Generator(rng)
        self.events = Events(self.generator)
        self.pool: deque[tuple[str, str]] = deque(maxlen=400)
        self.questions: deque[Pair] = deque(maxlen=400)

    def _finish(self, texts: list[str], pairs: list[Pair]) -> Segments:
        segments = lay_out(texts, pairs, self.rng)
        return [Segment("<|endoftext|>", NO_LOSS), *segments] if self.rng.random() < 0.4 else segments

    def _titled(self, title: str, text: str, share: float = 0.35) -> str:
        if not title or self.rng.random() > share:
            return text
        return f"{title}: {text}" if self.rng.random() < 0.6 else f"{title}\n{text}"

    def _distractors(self, article: Article, gold: int, count: int) -> list[str]:
        """About half from the same article, the others from earlier ones."""
        same = [p.text for i, p in enumerate(article.passages) if i != gold]
        self.rng.shuffle(same)
        out: list[str] = []
        for _ in range(count):
            if same and self.rng.random() < 0.5:
                out.append(self._titled(article.title, same.pop()))
            elif self.pool:
                out.append(self._titled(*self.rng.choice(self.pool)))
        return out

    def from_article(self, article: Article) -> list[Segments]:
        """One example a passage that has questions."""
        out: list[Segments] = []
        for number, passage in enumerate(article.passages):
            if passage.pairs:
                out.append(self._from_passage(article, number))
        for passage in article.passages:
            self.pool.append((article.title, passage.text[:1400].rsplit(". ", 1)[0].rstrip(".") + "."))
            self.questions += passage.pairs[:2]
        return out

    def _from_passage(self, article: Article, number: int) -> Segments:
        rng, passage = self.rng, article.passages[number]
        pairs = rng.sample(passage.pairs, min(len(passage.pairs), 8))
        share = rng.random()
        count = 0 if share < 0.36 else rng.randint(1, 3) if share < 0.8 else rng.randint(3, 7)
        others = self._distractors(article, number, count)
        text, removed = passage.text, None
        # Guesses that an answer is absent are sometimes wrong: fewer of them where a model has checked others.
        guessed = self.unanswerable * (0.4 if article.checked else 1.0)
        if rng.random() < 0.8 * guessed:
            text, removed = self.without_sentence(passage.text, pairs[0][1])
        texts = [*others, self._titled(article.title, text)]
        rng.shuffle(texts)
        if others and rng.random() < 0.5 * guessed:  # the passage with the answers is missing altogether
            texts, pairs = others, pairs[:2]
        while sum(map(len, texts)) > LONGEST_CONTEXT and len(texts) > 1:
            texts.pop(0 if texts[0].endswith(text) is False else -1)
        context = "\n".join(texts)
        turns: list[Pair] = []
        for question, answer in pairs:
            kept = answer in context and (removed is None or answer not in removed) and texts is not others
            if kept:
                turns.append((question, answer))
            elif answer.lower() not in context.lower() and turns.count((question, DONT_KNOW)) == 0:
                turns.append((question, DONT_KNOW))
            if not article.checked and rng.random() < 0.75 * self.unanswerable:
                turns += self._unanswerable(article, number, context, question)
        if texts is not others:
            turns += self._checked(article, number, context)
        if not turns:
            return self.no_context()
        rng.shuffle(turns)
        return self._finish(texts, turns[:9])

    def _checked(self, article: Article, number: int, context: str) -> list[Pair]:
        """Some of the passage's declined questions that the rest of the context does not answer either."""
        siblings = [p.text for i, p in enumerate(article.passages) if i != number]
        alone = not any(text[:80] in context for text in siblings)
        usable = [q for q, a in article.passages[number].declined if (a.lower() not in context.lower() if a else alone)]
        return [(question, DONT_KNOW) for question in usable if self.rng.random() < 3 * self.unanswerable]

    def absent(self, article: Article, number: int, most: int) -> list[Pair]:
        """Up to `most` questions that one passage probably does not answer, as in `Passage.declined`."""
        passage = article.passages[number]
        text = passage.text.lower()
        siblings = [p for i, p in enumerate(article.passages) if i != number]
        foreign = [(q, a) for p in siblings for q, a in p.pairs if a.lower() not in text]
        out = self.rng.sample(foreign, min(len(foreign), (most + 1) // 2))
        for question, _ in self.rng.sample(passage.pairs, min(len(passage.pairs), most - len(out))):
            changed = opposite(question, self.rng) if self.rng.random() < 0.2 else None
            changed = changed or self._other_name(question, article, passage.text)
            if changed:
                out.append((changed, ""))
        return out

    def without_sentence(self, text: str, answer: str) -> tuple[str, str | None]:
        """The passage without the sentences that hold the answer, and what was removed; unchanged if little is left."""
        parts = sentences(text)
        kept = [part for part in parts if answer not in part]
        removed = " ".join(part for part in parts if answer in part)
        return (" ".join(kept), removed) if len(kept) >= 2 and removed else (text, None)

    def _unanswerable(self, article: Article, number: int, context: str, question: str) -> list[Pair]:
        """A question that the context does not answer: of another passage, about another name or year, or foreign."""
        share = self.rng.random()
        if share < 0.5:
            changed = opposite(question, self.rng) if share < 0.12 else None
            changed = changed or self._other_name(question, article, context)
            return [(changed, DONT_KNOW)] if changed else []
        others = [pair for i, p in enumerate(article.passages) if i != number for pair in p.pairs]
        if share > 0.85 or not others:
            others = list(self.questions)
        if not others:
            return []
        foreign, answer = self.rng.choice(others)
        absent = answer.lower() not in context.lower()
        return [(foreign, DONT_KNOW)] if absent else []

    def _other_name(self, question: str, article: Article, context: str) -> str | None:
        """The question with one name or date replaced by another one, of the context or of the article."""
        rng = self.rng
        date = DATE.search(question)
        if date and rng.random() < 0.5:
            others = [m[1] for m in DATE.finditer(context) if m[1] != date[1] and len(m[1]) == len(date[1])]
            other = (
                rng.choice(others) if others else (str(int(date[1]) + rng.randint(2, 30)) if date[1].isdigit() else "")
            )
            return question[: date.start(1)] + other + question[date.end(1) :] if other else None
        names = [m for m in NAME.finditer(question) if m.start() > 0 and len(m[0]) > 3]
        if not names:
            return None
        name = rng.choice(names)
        source = (
            context
            if rng.random() < 0.6
            else " ".join(p.text for p in article.passages) + " ".join(t for _, t in self.pool)
        )
        at = rng.randrange(max(1, len(source) - 3000))
        found = {m[0] for m in NAME.finditer(source[at : at + 3000]) if m.start() > 0 and len(m[0]) > 3}
        choices = sorted(other for other in found if other not in question and name[0] not in other)
        alike = [other for other in choices if other.count(" ") == name[0].count(" ")]
        if not alike:
            return None
        return question[: name.start()] + rng.choice(alike) + question[name.end() :]

    def from_reading(self, reading: Reading) -> Segments:
        """A passage of a reading set with natural questions; declined ones have the answer's sentence or passage
        missing."""
        rng = self.rng
        pairs = rng.sample(reading.pairs, min(len(reading.pairs), 7))
        count = 0 if rng.random() < 0.5 else rng.randint(1, 4)
        others = [self._neighbour(reading) for _ in range(count if self.pool else 0)]
        if len(reading.near) and rng.random() < 0.45 * self.unanswerable / 0.15 * 0.25:
            others = others or [rng.choice(reading.near)]
            context = "\n".join(others).lower()
            turns = [(q, DONT_KNOW) for q, a in pairs if a in reading.passage and a.lower() not in context]
            if turns:
                return self._finish(others, turns[:4])
        text, removed = reading.passage, None
        if rng.random() < self.unanswerable:
            text, removed = self.without_sentence(text, pairs[0][1])
        texts = [*others, text]
        rng.shuffle(texts)
        article = Article("", [Passage(reading.passage, list(reading.pairs))])
        context = "\n".join(texts)
        turns = []
        for question, answer in pairs:
            if removed is None or answer not in removed:
                turns.append((question, answer))
            elif answer.lower() not in context.lower():
                turns.append((question, DONT_KNOW))
            if rng.random() < 0.75 * self.unanswerable:
                turns += self._unanswerable(article, 0, context, question)
        if not turns:
            return self.no_context()
        rng.shuffle(turns)
        return self._finish(texts, turns[:9])

    def _neighbour(self, reading: Reading) -> str:
        """A passage on the same matter where there is one, half of the time."""
        if reading.near and self.rng.random() < 0.5:
            return self.rng.choice(reading.near)
        return self._titled(*self.rng.choice(self.pool))

    def checks(self, article: Article) -> list[Segments]:
        """Single questions of a held-out article in the measured layout, for watching and calibration.

        Each passage gives up to two answerable ones, and one that it does not answer: with the answer's sentence
        removed, or
        put to another passage of the article.
        """
        out: list[Segments] = []
        for number, passage in enumerate(article.passages):
            others = [p.text for i, p in enumerate(article.passages) if i != number]
            out += [_measured(passage.text, question, answer) for question, answer in passage.pairs[:2]]
            for question, answer in passage.pairs[2:3] or passage.pairs[:1]:
                text, removed = self.without_sentence(passage.text, answer)
                if others and (removed is None or self.rng.random() < 0.5):
                    text = self.rng.choice(others)
                if answer.lower() not in text.lower():
                    out.append(_measured(text, question, DONT_KNOW))
        return out

    def facts(self) -> Segments:
        """A note of generated facts, or several notes."""
        rng = self.rng
        size = rng.choices(
            [rng.randint(2, 6), rng.randint(7, 16), rng.randint(17, 40), rng.randint(41, 80)], [3, 3.5, 2.5, 1]
        )[0]
        notes = 1 if rng.random() < 0.55 else rng.randint(2, 6)
        texts: list[str] = []
        facts: list[Fact] = []
        for _ in range(notes):
            text, more = self.generator.note(self._mixed_facts(max(1, size // notes)))
            if not {fact.key for fact in more} & {fact.key for fact in facts}:
                texts.append(text)
                facts += more
        known = rng.sample(facts, min(len(facts), rng.randint(2, 8)))
        turns: list[Pair] = []
        for fact in known:
            turns.append((fact.question, fact.answer))
            if rng.random() < 0.9 * self.unanswerable:
                turns.append(self._unknown_fact(facts))
        rng.shuffle(turns)
        return self._finish(texts, turns)

    def _mixed_facts(self, count: int) -> list[Fact]:
        """Facts of the table and composed events, with different keys."""
        share = self.rng.choice([0.0, 0.4, 0.4, 1.0])
        events = {fact.key: fact for fact in (self.events.fact() for _ in range(round(share * count)))}
        facts = [*events.values(), *self.generator.facts(count - len(events))]
        self.rng.shuffle(facts)
        return facts

    def note(self, count: int) -> str:
        """A note of about `count` generated facts."""
        return self.generator.note(self._mixed_facts(count))[0]

    def _unknown_fact(self, facts: list[Fact]) -> Pair:
        """A question in the style of these facts that none of them answers."""
        changed = self.events.unanswerable(facts) if self.rng.random() < 0.5 else None
        return (changed, DONT_KNOW) if changed else self.generator.unanswerable(facts)

    def needle(self, text: str) -> Segments:
        """One to six generated facts hidden in 2,500-9,500 characters of an article, half of the time all of them codes
        among other numbers; the text may be cut into passages."""
        rng = self.rng
        size = rng.randint(2500, 9500)
        at = rng.randrange(max(1, len(text) - size))
        cut = text[at : at + size].partition(" ")[2]
        parts = re.split(r"(?<=[.!?]) ", cut[: cut.rfind(". ") + 1] or cut)
        codes = rng.random() < 0.5
        facts = self.events.codes(rng.randint(1, 6)) if codes else self._mixed_facts(rng.randint(1, 6))
        hidden = [fact for fact in facts if rng.random() > 0.12]
        beside = [self.events.figure() for _ in range(rng.randint(0, 5))] if codes else []
        for statement in [*(fact.statement for fact in hidden), *beside]:
            parts.insert(rng.randrange(len(parts) + 1), statement)
        turns = [(fact.question, fact.answer if fact in hidden else DONT_KNOW) for fact in facts]
        if rng.random() < 0.3:
            turns.append(self._unknown_fact(hidden))
        pieces = rng.randint(2, 6) if rng.random() < 0.35 else 1
        cuts = [round(number * len(parts) / pieces) for number in range(pieces + 1)]
        texts = [" ".join(parts[start:end]) for start, end in pairwise(cuts) if end > start]
        return self._finish(texts, turns)

    def no_context(self) -> Segments:
        """A question without any context."""
        if self.questions and self.rng.random() < 0.6:
            question = self.rng.choice(self.questions)[0]
        else:
            question = self.generator.fact().question
        return self._finish([], [(question, DONT_KNOW)])

    def writing(self, passage: Passage) -> Segments | None:
        """An example for the question writer: passage, then answer and question. The answer stands in the passage."""
        fitting = [(q, a) for q, a in passage.pairs if a in passage.text and len(content_words(a)) + len(a) > 0]
        if not fitting or len(passage.text) > 1800:
            return None
        question, answer = self.rng.choice(fitting)
        return [Segment("<|endoftext|>", NO_LOSS), *writer_layout(passage.text, question, answer)]
