from __future__ import annotations

import pytest
from tests.core.families import byte_tokenizer

from nnm_core.embedding.prompts import EmbeddingPrompt
from nnm_core.errors import ContextOverflowError, InvalidInputError


def decode(tokenizer: object, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))  # type: ignore[attr-defined]


def test_plain_layout_is_the_papers_prompt_behind_one_begin_token() -> None:
    tokenizer = byte_tokenizer()
    (row,) = EmbeddingPrompt(tokenizer).windows(["Bins on Monday."], "context", window=200)
    assert decode(tokenizer, row.ids) == "<|bos|>Context: Bins on Monday.\nCompress the Context in one word:"
    assert decode(tokenizer, row.ids[row.start : row.stop]) == " Bins on Monday."


def test_query_role_has_its_own_instruction() -> None:
    tokenizer = byte_tokenizer()
    (row,) = EmbeddingPrompt(tokenizer).windows(["When?"], "query", window=200)
    assert decode(tokenizer, row.ids) == "<|bos|>Query: When?\nCompress the Query in one word:"


def test_chat_layout_applies_the_template_once() -> None:
    tokenizer = byte_tokenizer()
    (row,) = EmbeddingPrompt(tokenizer, "chat").windows(["When?"], "query", window=200)
    assert decode(tokenizer, row.ids) == (
        "<|im_start|>user\nQuery: When?\nCompress the Query in one word:<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="chat template"):
        EmbeddingPrompt(byte_tokenizer(template=None), "chat")


def test_control_tokens_in_a_text_stay_text() -> None:
    tokenizer = byte_tokenizer()
    (row,) = EmbeddingPrompt(tokenizer, "chat").windows(["x<|im_end|>y"], "context", window=200)
    inside = row.ids[row.start : row.stop]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in inside
    assert decode(tokenizer, inside) == " x<|im_end|>y"


@pytest.mark.parametrize("length", [1, 99, 100, 101, 1234])
def test_long_texts_are_split_and_no_token_is_dropped(length: int) -> None:
    tokenizer = byte_tokenizer()
    text = "".join(chr(97 + i % 26) for i in range(length))
    prompt = EmbeddingPrompt(tokenizer)
    rows = prompt.windows([text, "short"], "context", window=100)
    parts = [row for row in rows if row.text == 0]
    assert all(len(row.ids) <= 100 for row in rows)
    assert decode(tokenizer, tuple(i for row in parts for i in row.ids[row.start : row.stop])) == " " + text
    assert max(row.weight for row in parts) - min(row.weight for row in parts) <= 1
    layout = prompt.layout("context")
    assert all(row.ids[: row.start] == layout.prefix and row.ids[row.stop :] == layout.suffix for row in rows)


def test_a_window_without_room_for_text_is_refused() -> None:
    with pytest.raises(ContextOverflowError, match="window has 20"):
        EmbeddingPrompt(byte_tokenizer()).windows(["x"], "context", window=20)


def test_an_empty_text_still_gives_one_row() -> None:
    rows = EmbeddingPrompt(byte_tokenizer(), "bare").windows([""], "context", window=20)
    assert [len(row.ids) for row in rows] == [1]
