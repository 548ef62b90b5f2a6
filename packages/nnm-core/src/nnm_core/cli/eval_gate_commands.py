"""The gates as commands."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nnm_core.cli import eval_gate as options
from nnm_core.cli.eval_gate import GateOptions, for_gates, names_of, namespace_of, numbers_of, retriever_of
from nnm_core.errors import InvalidInputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nnm_core.evaluation.datasets import QuestionSet

HUB = "hub:"
_NOT_TEXTS = ("arms", "batch", "composer", "max_tokens")
HaystackOption = Annotated[
    Path, typer.Option("--data", metavar="PATH", help="Text to hide things in: a file or a folder of .txt and .md.")
]
PassagesOption = Annotated[
    Literal["oracle", "retrieved", "both"],
    typer.Option("--passages", help="The passage that answers, those that are found, or both ways."),
]


def register(group: typer.Typer) -> None:
    """Put the gates into the group ``nnm eval gate``."""
    for command in (qa, needle, multi, conversation, claims, extraction):
        group.command()(for_gates(command))


def qa(
    common: GateOptions,
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="SQuAD, TriviaQA, NQ or own questions, hub:NAME")],
    passages: PassagesOption = "both",
    k: Annotated[int, typer.Option("-k", min=1, help="Passages found for each question.")] = 3,
    retriever: options.RetrieverOption = "auto",
    format: Annotated[str | None, typer.Option(help="squad, triviaqa, nq, plain; else recognised.")] = None,
    evidence: Annotated[Path | None, typer.Option(help="TriviaQA: the folder of its documents.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Search these passages: a folder in BEIR's layout.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="File with classic RAG's prompt: {context} and {question}.")
    ] = None,
    limit: options.LimitOption = None,
    max_tokens: options.MaxTokensOption = 24,
    batch: options.BatchOption = 1,
    composer: options.ComposerOption = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Use (and fill up) the memory here, if it holds these passages by their ids."
        ),
    ] = None,
) -> None:
    """Questions about passages: cold, classic RAG, the same tokens read, injected, composed, random memories."""
    from nnm_core.evaluation.gates import qa as gate

    found = _questions(data, format, evidence, corpus)
    prompt = _template(template)
    settings = gate.QASettings(passages, k, limit, max_tokens, common.seed, batch, common.arm_names, composer, prompt)
    # A memory that is given has vectors, and gets them for what is added.
    searchable = passages != gate.ORACLE or store is not None
    settings = replace(settings, searchable=searchable)
    namespace = namespace_of("qa", searchable, sorted(found.passages.items()))
    with retriever_of("bm25" if passages == gate.ORACLE else retriever) as chosen:
        common.run(namespace, lambda engine, tell: gate.run(engine, found, chosen, settings, tell=tell), store=store)


def needle(
    common: GateOptions,
    data: HaystackOption,
    lengths: Annotated[str, typer.Option(metavar="N,N", help="Of documents, in characters.")] = "2500,5000,8000",
    to_the_limit: Annotated[
        bool, typer.Option("--to-the-limit", help="Also the longest documents that the model's context takes.")
    ] = False,
    cases: Annotated[int, typer.Option(min=1, help="Documents of each length.")] = 100,
    depths: Annotated[int, typer.Option(min=1, help="Places of the needle, from the beginning to the end.")] = 10,
    pieces: Annotated[int, typer.Option(min=2, help="Memories that a document is cut into, composed.")] = 4,
    max_tokens: options.MaxTokensOption = 16,
    batch: options.BatchOption = 1,
    composer: options.ComposerOption = None,
) -> None:
    """A code hidden in long documents, at every length and depth; nothing is ever cut short."""
    from nnm_core.evaluation.gates import needle as gate
    from nnm_core.evaluation.gates.haystack import Haystack

    haystack = Haystack.of(data)
    sizes = numbers_of(lengths, "--lengths")
    settings = gate.NeedleSettings(
        sizes, cases, depths, pieces, max_tokens, common.seed, batch, common.arm_names, composer
    )

    def whole(engine: Any, tell: Any) -> Any:
        longest = (gate.longest(engine, haystack),) if to_the_limit else ()
        return gate.run(engine, haystack, replace(settings, lengths=(*sizes, *longest)), tell=tell)

    common.run(namespace_of("needle", _texts_of(settings), to_the_limit, haystack.sentences), whole)


def multi(
    common: GateOptions,
    sizes: Annotated[str, typer.Option(metavar="N,N", help="Memories in a prompt.")] = "2,4,6,8,10",
    needed: Annotated[str, typer.Option(metavar="N,N", help="How many of them are needed: 1, 2, or 1,2.")] = "1,2",
    cases: Annotated[int, typer.Option(min=1, help="Prompts of each size and number needed.")] = 20,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Text to put around the facts: a file or a folder.")
    ] = None,
    words: Annotated[int, typer.Option(min=0, help="Words of that text around each fact.")] = 0,
    max_tokens: options.MaxTokensOption = 16,
    batch: options.BatchOption = 1,
    composer: options.ComposerOption = None,
) -> None:
    """Two to ten generated memories in a prompt, of which one or two are needed."""
    from nnm_core.evaluation.gates import multi as gate
    from nnm_core.evaluation.gates.haystack import Haystack

    settings = gate.MultiSettings(
        numbers_of(sizes, "--sizes"),
        numbers_of(needed, "--needed"),
        cases,
        words,
        max_tokens,
        common.seed,
        batch,
        common.arm_names,
        composer,
    )
    haystack = None if data is None else Haystack.of(data)
    namespace = namespace_of("multi", _texts_of(settings), haystack and haystack.sentences)
    common.run(namespace, lambda engine, tell: gate.run(engine, settings, haystack, tell=tell))


def conversation(
    common: GateOptions,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Conversations in LoCoMo's format.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Turns found for each question.")] = 8,
    retriever: options.RetrieverOption = "auto",
    limit: options.LimitOption = None,
    max_tokens: options.MaxTokensOption = 32,
    batch: options.BatchOption = 1,
    composer: options.ComposerOption = None,
) -> None:
    """Questions about long conversations, by category; each turn is a memory."""
    from nnm_core.evaluation.datasets import load_locomo
    from nnm_core.evaluation.gates import conversation as gate

    found = load_locomo(data)
    settings = gate.ConversationSettings(k, limit, max_tokens, common.seed, batch, common.arm_names, composer)
    turns = [(c.id, sorted(c.questions.passages.items())) for c in found]
    namespace = namespace_of("conversation", turns)
    with retriever_of(retriever) as chosen:
        common.run(namespace, lambda engine, tell: gate.run(engine, found, chosen, settings, tell=tell))


def claims(
    common: GateOptions,
    data: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="SciFact in BEIR's folder, or a JSONL file of claims.")
    ],
    split: Annotated[str, typer.Option(help="Of a folder.")] = "test",
    words: Annotated[str, typer.Option(metavar="A,B,C", help="For SUPPORT, CONTRADICT, NEI.")] = "yes,no,unknown",
    question: Annotated[str | None, typer.Option(help="With {claim} and {labels}; else the built-in one.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Take off what the model says without content.")
    ] = True,
    limit: options.LimitOption = None,
    composer: options.ComposerOption = None,
) -> None:
    """Does the document support the claim, contradict it, or not say? Forced choice by label probabilities."""
    from nnm_core.evaluation.datasets import load_claims
    from nnm_core.evaluation.gates import claims as gate

    found = load_claims(data, split)
    said = names_of(words) or ()
    if len(said) != 3:
        raise InvalidInputError(f"--words {words}: not three words.", hint="For example --words yes,no,unknown")
    settings = gate.ClaimsSettings(
        limit,
        (said[0], said[1], said[2]),
        question or gate.QUESTION,
        calibrate,
        common.seed,
        common.arm_names,
        composer,
    )
    namespace = namespace_of("claims", sorted(found.documents.items()))
    common.run(namespace, lambda engine, tell: gate.run(engine, found, settings, tell=tell))


def extraction(
    common: GateOptions,
    data: HaystackOption,
    carriers: Annotated[int, typer.Option(min=1, help="Documents for each pattern and goal.")] = 8,
    characters: Annotated[int, typer.Option(min=100, help="Of a document.")] = 800,
    max_tokens: options.MaxTokensOption = 32,
    batch: options.BatchOption = 1,
) -> None:
    """Orders hidden in memories: how often are they followed, read as text and injected?"""
    from nnm_core.evaluation.gates import extraction as gate
    from nnm_core.evaluation.gates.haystack import Haystack

    haystack = Haystack.of(data)
    settings = gate.ExtractionSettings(carriers, characters, max_tokens, common.seed, batch, common.arm_names)
    namespace = namespace_of("extraction", _texts_of(settings), haystack.sentences)
    common.run(namespace, lambda engine, tell: gate.run(engine, haystack, settings, tell=tell), system=gate.SYSTEM)


def _texts_of(settings: DataclassInstance) -> dict[str, Any]:
    """The settings that decide which texts are generated."""
    return {key: value for key, value in asdict(settings).items() if key not in _NOT_TEXTS}


def _questions(data: str, format: str | None, evidence: Path | None, corpus: Path | None) -> QuestionSet:
    """The questions, and the passages of the corpus in place of their own if one is named."""
    from nnm_core.evaluation.datasets import download_questions, load_beir, load_questions
    from nnm_core.evaluation.datasets.load import FORMATS, Format

    if format is not None and format not in FORMATS:
        raise InvalidInputError(f"{format!r} is no known format.", hint=f"Known: {', '.join(FORMATS)}.")
    known: Format | None = format  # type: ignore[assignment]  # checked above
    found = (
        download_questions(data.removeprefix(HUB))
        if data.startswith(HUB)
        else load_questions(data, format=known, evidence=evidence)
    )
    if corpus is None:
        return found
    passages = load_beir(corpus).documents
    return replace(found, passages=passages, questions=tuple(replace(q, passages=()) for q in found.questions))


def _template(source: Path | None) -> str | None:
    if source is None:
        return None
    from nnm_core.evaluation.datasets.files import read_text

    text = read_text(source).strip("\n")
    if "{context}" not in text or "{question}" not in text:
        raise InvalidInputError(f"{source}: a prompt needs {{context}} and {{question}}.", hint="See the docs.")
    return text
