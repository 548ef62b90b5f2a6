"""Ways to write documents into a prompt: where the words stay in order they are injected, else they are read."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from tests.chains.world import QUESTION, Receipts, chat, join, retriever

from nnm_core import NNM

Format = Callable[[list[Document]], str]


def each(write: Callable[[Document], str], separator: str = "\n\n") -> Format:
    return lambda documents: separator.join(write(document) for document in documents)


BOTH, FALCON, NONE = {"bins", "falcon"}, {"falcon"}, set[str]()
FORMATS: dict[str, tuple[Format, set[str]]] = {
    "joined": (join, BOTH),
    "one line apart": (each(lambda d: d.page_content, "\n"), BOTH),
    "numbered": (lambda documents: "\n".join(f"[{i}] {d.page_content}" for i, d in enumerate(documents, 1)), BOTH),
    "tags": (each(lambda d: f"<document source='{d.metadata['source']}'>{d.page_content}</document>", ""), BOTH),
    "markdown": (each(lambda d: f"### {d.metadata['source']}\n> {d.page_content}"), BOTH),
    "metadata in front": (each(lambda d: f"Source: {d.metadata}\nContent: {d.page_content}"), BOTH),
    "between quotes": (each(lambda d: f'"{d.page_content}"'), BOTH),
    "stripped": (each(lambda d: d.page_content.strip()), BOTH),
    "wrapped": (each(lambda d: textwrap.fill(d.page_content, 20)), BOTH),
    "collapsed": (each(lambda d: " ".join(d.page_content.split())), BOTH),
    "indented": (each(lambda d: textwrap.indent(d.page_content, "    ")), BOTH),
    "windows line ends": (each(lambda d: d.page_content.replace("\n", "\r\n")), BOTH),
    "reversed order": (lambda documents: join(documents[::-1]), BOTH),
    "twice": (lambda documents: join([*documents, *documents]), BOTH),
    "html": (each(lambda d: html.escape(d.page_content)), BOTH),
    # JSON and repr write line breaks as \n: white space too.
    "json": (each(lambda d: json.dumps(d.page_content)), BOTH),
    "repr": (str, BOTH),
    "documents as they are": (lambda documents: f"{documents}", BOTH),
    # A quotation mark in front of every line stands between the words of the two lines.
    "quoted lines": (each(lambda d: textwrap.indent(d.page_content, "> ")), FALCON),
    "lower case": (each(lambda d: d.page_content.lower()), NONE),
    "cut": (each(lambda d: d.page_content[:25]), NONE),
    "without punctuation": (each(lambda d: d.page_content.replace(".", "").replace(",", "")), NONE),
    "words sorted": (each(lambda d: " ".join(sorted(d.page_content.split()))), NONE),
}


def chain(nnm: NNM, write: Format, **options: Any) -> Runnable[Any, Any]:
    prompt = ChatPromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
    return {"context": retriever(nnm) | write, "question": RunnablePassthrough()} | prompt | chat(nnm, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_injected_or_read_never_lost(nnm: NNM, receipts: Receipts, name: str) -> None:
    write, expected = FORMATS[name]
    chain(nnm, write).invoke(QUESTION, receipts.config)
    assert receipts.injected() == expected
    injected = receipts.last
    chain(nnm, write, mode="read").invoke(QUESTION, receipts.config)
    read = receipts.last
    # The same prompt, token for token, but for white space inside injected memories, which is theirs.
    lost = read["tokens_read"] - injected["tokens_injected"] - injected["tokens_read"]
    assert lost == 0
    assert (injected["tokens_injected"] > 0) == bool(expected)


@pytest.mark.parametrize("name", FORMATS)
def test_exact_policy_answers_as_if_read_and_injects_from_the_second_time(
    nnm: NNM, receipts: Receipts, name: str
) -> None:
    write, expected = FORMATS[name]
    exact = chain(nnm, write, policy="auto", max_tokens=4)
    first, second = exact.invoke(QUESTION, receipts.config), exact.invoke(QUESTION, receipts.config)
    read = chain(nnm, write, mode="read", max_tokens=4).invoke(QUESTION)
    assert first.text == second.text == read.text
    assert {name for name, how in receipts.all[1]["memories"].items() if how == "injected"} == expected


@pytest.mark.parametrize("name", ["lower case", "json", "joined"])
def test_strict_tells_when_all_of_it_would_be_read(nnm: NNM, name: str) -> None:
    from nnm_core import MemoryNotInjectedError

    write, expected = FORMATS[name]
    strict = chain(nnm, write, strict=True)
    if expected:
        strict.invoke(QUESTION)
    else:
        with pytest.raises(MemoryNotInjectedError):
            strict.invoke(QUESTION)
