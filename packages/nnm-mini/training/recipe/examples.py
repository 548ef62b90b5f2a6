"""Reading examples: passages with questions, distractors, questions that cannot be answered, needles in articles.

An example is a list of `layout.Segment`. About one question turn in six is unanswerable, in five ways
(`_unanswerable`).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from random import Random

from recipe.corpus import Document, passages, sentences
from recipe.facts import Generator
from recipe.grammar import DATE, NAME, content_words
from recipe.layout import DONT_KNOW, NO_LOSS, Segment, lay_out, writer_layout
from recipe.reading_sets import Reading
from recipe.rules import pairs_of

Pair = tuple[str, str]
Segments = list[Segment]
LONGEST_CONTEXT = 12000
"""Characters of context in one example at most: fewer than 4,096 tokens."""


@dataclass
class Passage:
    """A passage and the questions that it answers."""

    text: str
    pairs: list[Pair] = field(default_factory=list)


@dataclass
class Article:
    """Passages of one source; the title may be empty."""

    title: str
    passages: list[Passage]


def article_by_rule(document: Document, rng: Random, most_passages: int = 6) -> Article:
    """Cut a document into passages and ask each by rule."""
    texts = passages(document.text[:40000], rng.randint(60, 200))
    if len(texts) > most_passages:
        start = rng.randrange(len(texts) - most_passages + 1) if rng.random() < 0.6 else 0
        texts = texts[start : start + most_passages]
    article = Article(document.title, [])
    for text in texts:
        parts = sentences(text)
        rng.shuffle(parts)
        pairs: list[Pair] = []
        for sentence in parts[:7]:
            if 30 < len(sentence) < 420:
                pairs += pairs_of(sentence, document.title, rng, rng.choice([1, 1, 2]))
        article.passages.append(Passage(text, pairs[:9]))
    return article


class Builder:
    """Makes examples; remembers passages and questions of earlier articles as distractors and foreign questions."""

    def __init__(self, rng: Random, unanswerable: float = 0.15) -> None:
        self.rng, self.unanswerable = rng, unanswerable
        self.generator = Generator(rng)
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
        count = 0 if share < 0.42 else rng.randint(1, 3) if share < 0.8 else rng.randint(3, 7)
        others = self._distractors(article, number, count)
        text, removed = passage.text, None
        if rng.random() < 0.8 * self.unanswerable:
            text, removed = self._without_sentence(passage.text, pairs[0][1])
        texts = [*others, self._titled(article.title, text)]
        rng.shuffle(texts)
        if others and rng.random() < 0.5 * self.unanswerable:  # the passage with the answers is missing altogether
            texts = others
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
            if rng.random() < 0.75 * self.unanswerable:
                turns += self._unanswerable(article, number, context, question)
        if not turns:
            return self.no_context()
        rng.shuffle(turns)
        return self._finish(texts, turns[:9])

    def _without_sentence(self, text: str, answer: str) -> tuple[str, str | None]:
        """The passage without the sentences that hold the answer, and what was removed; unchanged if little is left."""
        parts = sentences(text)
        kept = [part for part in parts if answer not in part]
        removed = " ".join(part for part in parts if answer in part)
        return (" ".join(kept), removed) if len(kept) >= 2 and removed else (text, None)

    def _unanswerable(self, article: Article, number: int, context: str, question: str) -> list[Pair]:
        """A question that the context does not answer: of another passage, about another name or year, or foreign."""
        share = self.rng.random()
        if share < 0.45:
            changed = self._other_name(question, article, context)
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
        """A passage of a reading set with natural questions."""
        rng = self.rng
        pairs = rng.sample(reading.pairs, min(len(reading.pairs), 7))
        count = 0 if rng.random() < 0.6 else rng.randint(1, 4)
        texts = [reading.passage, *(self._titled(*rng.choice(self.pool)) for _ in range(count if self.pool else 0))]
        rng.shuffle(texts)
        if len(texts) > 1 and rng.random() < 0.5 * self.unanswerable:
            texts.remove(reading.passage)
            pairs = [(q, DONT_KNOW) for q, a in pairs if a.lower() not in "\n".join(texts).lower()] or [
                (pairs[0][0], DONT_KNOW)
            ]
            return self._finish(texts, pairs[:3])
        article = Article("", [Passage(reading.passage, list(reading.pairs))])
        turns: list[Pair] = []
        for question, answer in pairs:
            turns.append((question, answer))
            if rng.random() < self.unanswerable:
                turns += self._unanswerable(article, 0, "\n".join(texts), question)
        rng.shuffle(turns)
        return self._finish(texts, turns[:9])

    def facts(self) -> Segments:
        """A note of generated facts, or several notes."""
        rng = self.rng
        size = rng.choices(
            [rng.randint(2, 6), rng.randint(7, 16), rng.randint(17, 40), rng.randint(41, 80)], [3, 3.5, 2.5, 1]
        )[0]
        notes = 1 if rng.random() < 0.55 else rng.randint(2, 6)
        texts, known = [], []
        facts = []
        for _ in range(notes):
            text, more = self.generator.document(max(1, size // notes))
            if not {fact.key for fact in more} & {fact.key for fact in facts}:
                texts.append(text)
                facts += more
        known = rng.sample(facts, min(len(facts), rng.randint(2, 8)))
        turns: list[Pair] = []
        for fact in known:
            turns.append((fact.question, fact.answer))
            if rng.random() < 1.2 * self.unanswerable:
                turns.append(self.generator.unanswerable(facts))
        rng.shuffle(turns)
        return self._finish(texts, turns)

    def needle(self, text: str) -> Segments:
        """One to six generated facts hidden in 2,500-9,500 characters of an article."""
        rng = self.rng
        size = rng.randint(2500, 9500)
        at = rng.randrange(max(1, len(text) - size))
        cut = text[at : at + size].partition(" ")[2]
        parts = re.split(r"(?<=[.!?]) ", cut[: cut.rfind(". ") + 1] or cut)
        facts = self.generator.facts(rng.randint(1, 6))
        hidden = [fact for fact in facts if rng.random() > 0.12]
        for fact in hidden:
            parts.insert(rng.randrange(len(parts) + 1), fact.statement)
        turns = [(fact.question, fact.answer if fact in hidden else DONT_KNOW) for fact in facts]
        if rng.random() < 0.3:
            turns.append(self.generator.unanswerable(hidden))
        return self._finish([" ".join(parts)], turns)

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
