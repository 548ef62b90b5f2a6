"""What people have on disk becomes documents, or a message that says where it is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnm_core.cli.documents import Document, Unreadable, read_documents, split_text


def read(*sources: Path, split: int = 0) -> list[Document | Unreadable]:
    return list(read_documents([str(source) for source in sources], split=split))


def only(found: list[Document | Unreadable]) -> Document:
    assert len(found) == 1
    assert isinstance(found[0], Document)
    return found[0]


def error_of(found: list[Document | Unreadable]) -> str:
    broken = [item for item in found if isinstance(item, Unreadable)]
    assert len(broken) == 1
    return str(broken[0].error)


def test_a_text_file_is_one_document_with_its_path_as_id(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Größe: 3 m\n", encoding="utf-8")
    document = only(read(file))
    assert (document.id, document.text) == (file.as_posix(), "Größe: 3 m\n")
    assert document.metadata == {"source": file.as_posix()}


def test_a_folder_is_read_in_sorted_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("b.md", "sub/a.txt", "a.txt", "picture.png", "A.TXT"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    texts = [item.text for item in read(tmp_path) if isinstance(item, Document)]
    assert sorted(texts) == ["A.TXT", "a.txt", "b.md", "sub/a.txt"]
    assert texts == [item.text for item in read(tmp_path) if isinstance(item, Document)]


def test_jsonl_fields(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    rows = [{"id": 7, "title": "T", "text": "one", "year": 2020}, {"text": "two"}]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    first, second = read(file)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert (first.id, first.text) == ("7", "one")
    assert first.metadata == {"source": file.as_posix(), "title": "T", "year": 2020}
    assert second.id == f"{file.as_posix()}:2"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert [item.text for item in read(tmp_path) if isinstance(item, Document)] == ["hello", "hello"]


def test_broken_utf8_is_named_with_file_and_byte_offset(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("Größe".encode("latin-1"))
    assert f"{file.as_posix()}: not UTF-8, byte 0xf6 at offset 2." in error_of(read(file))


def test_the_offset_in_a_jsonl_file_counts_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    line = b'{"text": "good"}\n'
    file.write_bytes(line + b'{"text": "b\xffd"}\n' + line)
    found = read(file)
    assert f"{file.as_posix()}:2: not UTF-8, byte 0xff at offset {len(line) + 11}." in error_of(found)
    assert [item.text for item in found if isinstance(item, Document)] == ["good", "good"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": "x"}', "no text"),
        ('{"text": "  "}', "no text"),
        ('{"text": 3}', "no text"),
        ('{"id": [1], "text": "t"}', "neither a string nor a number"),
    ],
)
def test_bad_records_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"text": "good"}\n' + line + "\n")
    error = error_of(read(file))
    assert f"{file.as_posix()}:2: " in error
    assert message in error


@pytest.mark.parametrize("name", ["missing.txt", "picture.png", "empty.txt"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    if name != "missing.txt":
        (tmp_path / name).write_text(" \n" if name == "empty.txt" else "x")
    assert name in error_of(read(tmp_path / name))


def test_long_files_are_cut_at_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "long.md"
    file.write_text("one two three\n\nfour five\n\nsix. " + "seven eight nine ten.")
    pieces = [item for item in read(file, split=5) if isinstance(item, Document)]
    assert [piece.id for piece in pieces] == [f"{file.as_posix()}#{n}" for n in (1, 2)]
    assert [piece.text for piece in pieces] == ["one two three\n\nfour five", "six. seven eight nine ten."]


paragraphs = st.lists(
    st.lists(st.sampled_from(["alpha", "beta.", "gamma", "delta!", "x"]), min_size=1, max_size=30),
    min_size=1,
    max_size=6,
)


@given(paragraphs, st.integers(1, 12))
def test_cutting_loses_no_word_and_cuts_between_sentences_only(text: list[list[str]], words: int) -> None:
    whole = "\n\n".join(" ".join(paragraph) for paragraph in text)
    pieces = split_text(whole, words)
    assert " ".join(pieces).split() == whole.split()
    for piece in pieces:
        # Too long only if it is one sentence, which cannot be cut.
        assert len(piece.split()) <= words or not any(w[-1] in ".!" for w in piece.split()[:-1])
