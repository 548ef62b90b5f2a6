"""How a reading example is laid out as text: chat markup, context header, separators, passages, question turns.

A `Segment` is a piece of text with a loss class and a group. Groups say what may see what (`model.visible`):
`SHARED` (0) is the prefix and the questions, `k > 0` the k-th independently encoded passage, `BETWEEN` (-1) a separator
that is read after the passages before it but is not seen by the passages after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

NO_LOSS, CONTEXT, ANSWER, MARKUP = 0, 1, 2, 3
SHARED, BETWEEN = 0, -1
DONT_KNOW = "I don't know."

SYSTEM = "You answer questions with a short factual answer."
SYSTEM_PROMPTS = (
    *[SYSTEM] * 5,
    "Answer the question with a short answer.",
    "You are a helpful assistant. Answer briefly.",
    "You are a helpful assistant.",
    "Use the context to answer the question in a few words.",
    "Answer from the context. If the context does not contain the answer, say: I don't know.",
    "Give a short, exact answer. If the answer is unknown, say that you don't know.",
    "You answer questions from memory with a short factual answer.",
    "Answer the question using only the memories below.",
    "Answer in as few words as possible.",
)
HEADERS = (*["Context:\n"] * 12, "Passages:\n", "Memories:\n", "Notes:\n", "Documents:\n", "Memory:\n", "")
SEPARATORS = (*["\n\n"] * 8, "\n", "\n---\n")


@dataclass(frozen=True)
class Segment:
    """A piece of text; its tokens never merge with its neighbours' (it starts and ends between pre-tokens)."""

    text: str
    loss: int
    group: int = SHARED


def chat(passages: list[str], question: str, system: str | None = SYSTEM) -> str:
    """The main layout as one string, up to where the answer starts: the one that the memory engine writes."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    context = "Context:\n" + "".join(f"{passage}\n\n" for passage in passages) if passages else ""
    return f"{head}<|im_start|>user\n{context}Question: {question}<|im_end|>\n<|im_start|>assistant\n"


def _turns(pairs: list[tuple[str, str]], first: str, bare: bool) -> list[Segment]:
    """Question turns; `first` is the markup of the first one (the user turn may already be open)."""
    out: list[Segment] = []
    for number, (question, answer) in enumerate(pairs):
        start = first if number == 0 else "\n<|im_start|>user\n"
        asked = question if bare else f"Question: {question}"
        out.append(Segment(f"{start}{asked}<|im_end|>\n<|im_start|>assistant\n", MARKUP))
        out.append(Segment(f" {answer}<|im_end|>", ANSWER))
    return [*out, Segment("\n", NO_LOSS)]


def _system(rng: Random, absent: float = 0.15) -> str:
    return "" if rng.random() < absent else f"<|im_start|>system\n{rng.choice(SYSTEM_PROMPTS)}<|im_end|>\n"


def memory_layout(
    passages: list[str], pairs: list[tuple[str, str]], rng: Random, independent: bool = False
) -> list[Segment]:
    """`system`, then a user turn of header, passages each followed by a separator, and the question.

    With `independent`, passage k is group k; its separator belongs to it, or is read between the passages.
    """
    header, separator = rng.choice(HEADERS), rng.choice(SEPARATORS)
    out = [Segment(f"{_system(rng)}<|im_start|>user\n{header}", MARKUP)]
    inside = rng.random() < 0.5
    for number, passage in enumerate(passages, start=1):
        group = number if independent else SHARED
        out.append(Segment(passage, CONTEXT, group))
        out.append(Segment(separator, MARKUP, (group if inside else BETWEEN) if independent else SHARED))
    return out + _turns(pairs, "", rng.random() < 0.06)


def joined_layout(passages: list[str], pairs: list[tuple[str, str]], rng: Random) -> list[Segment]:
    """`Context: <text>` and a blank line, then the question, in one user turn."""
    label = rng.choice(["Context:"] * 5 + ["Passage:", "Document:", "Notes:"])
    out = [Segment(f"{_system(rng, 0.25)}<|im_start|>user\n{label}", MARKUP)]
    out.append(Segment(" " + "\n\n".join(passages), CONTEXT))
    return out + _turns(pairs, "\n\n", rng.random() < 0.1)


def outside_layout(passages: list[str], pairs: list[tuple[str, str]], rng: Random) -> list[Segment]:
    """The context as plain text before the chat begins."""
    out = [Segment("Context:", MARKUP), Segment(" " + "\n\n".join(passages), CONTEXT)]
    return out + _turns(pairs, f"\n{_system(rng, 0.25)}<|im_start|>user\n", rng.random() < 0.1)


def plain_layout(passages: list[str], pairs: list[tuple[str, str]], rng: Random) -> list[Segment]:
    """No chat markup at all: `Context: ... Question: ... Answer:`."""
    out = [Segment("Context:", MARKUP), Segment(" " + "\n\n".join(passages), CONTEXT)]
    for question, answer in pairs:
        out.append(Segment(f"\nQuestion: {question}\nAnswer:", MARKUP))
        out.append(Segment(f" {answer}<|im_end|>", ANSWER))
    return [*out, Segment("\n", NO_LOSS)]


def lay_out(passages: list[str], pairs: list[tuple[str, str]], rng: Random) -> list[Segment]:
    """One example in a layout drawn by its share; several passages are independent nearly eight times in ten."""
    passages = [passage.strip() for passage in passages]
    if not passages:
        return [Segment(f"{_system(rng)}<|im_start|>user\n", MARKUP), *_turns(pairs, "", rng.random() < 0.15)]
    if len(passages) > 1 and rng.random() < 0.78:
        return memory_layout(passages, pairs, rng, independent=True)
    share = rng.random()
    if share < 0.62:
        return memory_layout(passages, pairs, rng)
    if share < 0.80:
        return joined_layout(passages, pairs, rng)
    return outside_layout(passages, pairs, rng) if share < 0.91 else plain_layout(passages, pairs, rng)


def writer_prompt(passage: str) -> str:
    """What the question writer reads: it continues with ` <answer>`, a line `Question: <question>`, and the end."""
    return f"{passage.strip()}\nAnswer:"


def writer_layout(passage: str, question: str, answer: str) -> list[Segment]:
    """A training example of the question writer."""
    return [
        Segment(passage.strip(), CONTEXT),
        Segment("\nAnswer:", MARKUP),
        Segment(f" {answer}\nQuestion: {question}<|im_end|>", ANSWER),
        Segment("\n", NO_LOSS),
    ]
