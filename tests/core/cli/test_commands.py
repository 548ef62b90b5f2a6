"""The commands: what they hand to the engine, what they print where, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.core.cli.conftest import Nnm
from tests.core.cli.fake import FakeNNM

from nnm_core.errors import ModelNotFoundError


@pytest.fixture
def filled(nnm: Nnm) -> Nnm:
    """A memory with two records."""
    rows = [{"id": "bins", "text": "bins are collected on Tuesdays"}, {"id": "library", "text": "it opens at nine"}]
    Path("r.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert nnm("add", "r.jsonl").code == 0
    return nnm


def test_add_hands_ids_texts_and_metadata_to_the_engine(filled: Nnm) -> None:
    assert FakeNNM.store["bins"].text == "bins are collected on Tuesdays"
    assert FakeNNM.store["bins"].metadata == {"source": "r.jsonl"}
    assert FakeNNM.calls[-1] == ("close", None)


def test_the_options_reach_the_engine(nnm: Nnm) -> None:
    given = ("--model", "m", "--path", "p", "--namespace", "n", "--device", "cpu", "--url", "http://q:1")
    nnm("add", "-", *given, stdin=b"text")
    options = {"model": "m", "path": Path("p"), "namespace": "n", "device": "cpu", "url": "http://q:1"}
    assert FakeNNM.calls[0] == ("open", {**options, "rebuild": False, "codec": None})


def test_the_environment_sets_defaults(nnm: Nnm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNM_MODEL", "from-env")
    nnm("add", "-", stdin=b"text")
    assert FakeNNM.calls[0][1]["model"] == "from-env"


def test_piped_text_is_read_without_a_dash(nnm: Nnm) -> None:
    assert nnm("add", stdin="Größe".encode()).code == 0
    assert FakeNNM.store["stdin"].text == "Größe"


def test_piped_jsonl(nnm: Nnm) -> None:
    assert nnm("add", "-", "--jsonl", stdin=b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n').code == 0
    assert set(FakeNNM.store) == {"a", "b"}


def test_more_documents_than_a_batch_are_all_added_in_order(nnm: Nnm) -> None:
    Path("r.jsonl").write_text("\n".join(json.dumps({"id": f"m{n}", "text": f"t{n}"}) for n in range(150)))
    assert nnm("add", "r.jsonl").code == 0
    assert list(FakeNNM.store) == [f"m{n}" for n in range(150)]


def test_broken_utf8_stops_before_the_model_is_loaded(nnm: Nnm) -> None:
    Path("latin.txt").write_bytes("Größe".encode("latin-1"))
    ran = nnm("add", "latin.txt")
    assert ran.code == 1
    assert "latin.txt: not UTF-8, byte 0xf6 at offset 2." in ran.err
    assert "Hint:" in ran.err
    assert FakeNNM.calls == []


def test_skip_errors_goes_on_and_reports(nnm: Nnm) -> None:
    Path("bad.txt").write_bytes(b"\xff")
    Path("good.txt").write_text("good")
    ran = nnm("add", "bad.txt", "good.txt", "missing.txt", "--skip-errors", "--json", "r.json")
    assert ran.code == 0
    assert list(FakeNNM.store) == ["good.txt"]
    report = json.loads(Path("r.json").read_text())
    assert report["added"] == 1
    assert [item["origin"] for item in report["skipped"]] == ["bad.txt", "missing.txt"]


def test_what_was_added_before_a_broken_file_stays(nnm: Nnm) -> None:
    Path("r.jsonl").write_text("\n".join(json.dumps({"id": f"m{n}", "text": "t"}) for n in range(100)) + "\n{\n")
    ran = nnm("add", "r.jsonl")
    assert ran.code == 1
    assert "r.jsonl:101" in ran.err
    assert len(FakeNNM.store) == 100
    assert FakeNNM.calls[-1] == ("close", None)


def test_search_shows_a_table(filled: Nnm) -> None:
    ran = filled("search", "when are bins collected", "-k", "1")
    assert ran.code == 0
    assert "bins are collected on Tuesdays" in ran.out
    assert "library" not in ran.out
    assert "sparse" not in ran.out


def test_search_explains(filled: Nnm) -> None:
    shown = filled("search", "bins", "--explain").out
    assert "sparse" in shown
    assert "0.500 (1)" in shown


def test_search_without_hits_says_so_on_stderr(filled: Nnm) -> None:
    ran = filled("search", "zebra")
    assert (ran.code, ran.out) == (0, "")
    assert "Nothing found." in ran.err


def test_json_on_stdout_is_alone_there(filled: Nnm) -> None:
    ran = filled("search", "bins", "--json", "-")
    value = json.loads(ran.out)
    assert value["hits"][0]["memory"]["id"] == "bins"
    assert value["config"]["query"] == "bins"


def test_ask_prints_the_answer_alone_on_stdout(filled: Nnm) -> None:
    ran = filled("ask", "when are the bins collected", "--policy", "fast", "--mode", "read", "-k", "2")
    assert ran.out == "on Tuesdays\n"
    assert "11 tokens injected" in ran.err
    assert "m: too long" in ran.err
    options = FakeNNM.calls[-2][1]
    assert (options["policy"], options["mode"], options["k"], options["max_tokens"]) == ("fast", "read", 2, 64)


def test_ask_streams(filled: Nnm) -> None:
    assert filled("ask", "bins?", "--stream").out.strip() == "on Tuesdays"


def test_ask_reads_a_question_from_stdin(filled: Nnm) -> None:
    filled("ask", "-", stdin=b"bins?\n")
    assert FakeNNM.calls[-2][1]["question"] == "bins?"


def test_ask_takes_a_chat_prompt(filled: Nnm) -> None:
    Path("chat.json").write_text('[{"role": "system", "content": "Be short."}, {"role": "user", "content": "bins?"}]')
    ran = filled("ask", "--messages", "chat.json", "--json", "a.json")
    assert ran.code == 0
    question = FakeNNM.calls[-2][1]["question"]
    assert [(message.role, message.content) for message in question] == [("system", "Be short."), ("user", "bins?")]
    assert json.loads(Path("a.json").read_text())["answer"]["receipt"]["tokens_injected"] == 11


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "[1]", '[{"role": "robot", "content": "x"}]', '[{"role": "user"}]', "\x00"]
)
def test_a_bad_chat_prompt_is_explained(filled: Nnm, content: str) -> None:
    Path("chat.json").write_text(content)
    ran = filled("ask", "--messages", "chat.json")
    assert ran.code == 1
    assert "chat.json" in ran.err


def test_stats(filled: Nnm) -> None:
    ran = filled("stats")
    assert "memories" in ran.out
    assert "3.0 MiB" in ran.out


def test_delete_counts(filled: Nnm) -> None:
    ran = filled("delete", "bins", "nobody")
    assert (ran.code, ran.err.strip().splitlines()[-1]) == (0, "1 deleted, 1 unknown.")
    assert list(FakeNNM.store) == ["library"]
    assert filled("delete", "bins").code == 1


def test_forget_asks_unless_told(filled: Nnm) -> None:
    ran = filled("forget", "bins")
    assert ran.code == 1
    assert "--yes" in ran.err
    assert "bins" in FakeNNM.store
    assert filled("forget", "bins", "--yes").code == 0
    assert ("forget", ["bins"]) in FakeNNM.calls


@pytest.mark.parametrize("command", [("search", "x"), ("ask", "x"), ("stats",), ("delete", "x"), ("forget", "x", "-y")])
def test_reading_from_a_memory_that_is_not_there(nnm: Nnm, command: tuple[str, ...]) -> None:
    ran = nnm(*command)
    assert ran.code == 1
    assert "There is no memory at memory" in ran.err
    assert not Path("memory").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("search",),
        ("search", "x", "-k", "0"),
        ("ask",),
        ("ask", "x", "--messages", "f"),
        ("ask", "x", "--mode", "guess"),
        ("ask", "x", "--policy", "wild"),
        ("add", "--split", "-1", "x"),
        ("delete",),
    ],
)
def test_wrong_usage_is_exit_2(nnm: Nnm, arguments: tuple[str, ...]) -> None:
    ran = nnm(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert FakeNNM.calls == []


def test_an_empty_question_is_refused(filled: Nnm) -> None:
    ran = filled("ask", "-", stdin=b" \n")
    assert ran.code == 1
    assert "The question is empty." in ran.err


def test_an_expected_error_is_a_message_and_a_hint(nnm: Nnm) -> None:
    FakeNNM.fail_with = ModelNotFoundError("Cannot load the model 'x'.", hint="Name another.")
    ran = nnm("add", "-", stdin=b"text")
    assert ran.code == 1
    assert ran.err.splitlines()[-2:] == ["Error: Cannot load the model 'x'.", "Hint:  Name another."]


def test_an_unexpected_error_is_one_line_and_exit_70(nnm: Nnm) -> None:
    FakeNNM.fail_with = RuntimeError("shape mismatch\nsecond line")
    ran = nnm("add", "-", stdin=b"text")
    assert ran.code == 70
    assert "RuntimeError: shape mismatch second line" in ran.err
    assert "NNM_TRACEBACK=1" in ran.err
    assert "Traceback (most" not in ran.err


def test_the_traceback_can_be_had(nnm: Nnm, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNNM.fail_with = RuntimeError("shape mismatch")
    monkeypatch.setenv("NNM_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        nnm("add", "-", stdin=b"text")


def test_ctrl_c_is_exit_130(nnm: Nnm) -> None:
    FakeNNM.fail_with = KeyboardInterrupt()
    ran = nnm("add", "-", stdin=b"text")
    assert ran.code == 130
    assert "Traceback" not in ran.err


def test_a_json_file_that_cannot_be_written(filled: Nnm) -> None:
    Path("file").write_text("")
    ran = filled("stats", "--json", "file/under.json")
    assert ran.code == 1
    assert "Cannot write file/under.json" in ran.err


def test_stored_text_cannot_drive_the_terminal(nnm: Nnm) -> None:
    nnm("add", "-", stdin=b"bins \x1b[2J\x1b]0;owned\x07 tuesday [bold]x[/bold]")
    ran = nnm("search", "bins")
    assert "\x1b" not in ran.out
    assert "\x07" not in ran.out
    assert "[bold]x[/bold]" in ran.out


def test_version(nnm: Nnm) -> None:
    assert nnm("--version").out.startswith("nnm 0.")
