"""What people and programs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
from tests.core.tiny import tiny_reader

from nnm_core.evaluation.benchmark import command, side_by_side, spread, texts_of_length
from nnm_core.evaluation.report import plain, seconds, snippet, visible, write_json
from nnm_core.records import Hit, Memory


def test_plain_makes_json_of_records() -> None:
    hit = Hit(Memory("a", "t", MappingProxyType({"n": (1, 2), "p": Path("x")}), created=1.0), 0.5, {"dense": 1.0})
    value = json.loads(json.dumps(plain([hit])))
    assert value[0]["memory"]["metadata"] == {"n": [1, 2], "p": "x"}
    assert value[0]["parts"] == {"dense": 1.0}


def test_write_json_makes_the_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"ü": 1})
    assert (tmp_path / "a" / "b.json").read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'


def test_snippet_is_one_line_of_bounded_width() -> None:
    assert snippet("a\n b\x1b[2J", 20) == "a b\ufffd[2J"
    assert snippet("word " * 50, 20) == "word word word word\u2026"


def test_visible_keeps_lines_and_tabs() -> None:
    assert visible("a\n\tb\r\x00\x9b") == "a\n\tb\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(("value", "shown"), [(0.0123, "12 ms"), (0.5, "0.50 s"), (9.994, "9.99 s"), (75.4, "75 s")])
def test_seconds(value: float, shown: str) -> None:
    assert seconds(value) == shown


def test_arms_are_measured_in_turns_that_change_direction() -> None:
    order: list[tuple[str, int]] = []

    def arm(name: str, value: float) -> Callable[[int], float]:
        def measure(repeat: int) -> float:
            order.append((name, repeat))
            return value + repeat

        return measure

    found = side_by_side({"a": arm("a", 10.0), "b": arm("b", 20.0)}, 3)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [10.0, 11.0, 12.0], "b": [20.0, 21.0, 22.0]}
    assert spread(found["a"]) == {"median": 11.0, "low": 10.0, "high": 12.0}


def test_texts_have_the_length_and_differ() -> None:
    model = tiny_reader()
    texts = texts_of_length(model, 100, 5)
    assert len(set(texts)) == 5
    for text in texts:
        assert abs(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) - 100) <= 2


def test_a_command_can_be_repeated_and_names_no_file_that_it_writes() -> None:
    words = ["/bin/nnm", "eval", "retrieval", "DATA", "--json", "r.json", "--baselines", "", "--save-runs", "f"]
    assert command(words) == "nnm eval retrieval DATA --baselines ''"
    assert command(["b.py", "--settings", "one needed"]) == "python b.py --settings 'one needed'"
