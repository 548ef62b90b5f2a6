from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnm_core.errors import InvalidInputError
from nnm_core.storage.paths import encode_name, namespace_directory
from nnm_core.storage.qdrant import collection_name

_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(_names)
def test_a_name_never_leaves_its_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp()
    directory = namespace_directory(root, name)
    assert directory.parent == root
    assert directory.resolve().parent == root.resolve()
    assert len(directory.name.encode()) <= 180


@given(_names, _names)
def test_different_names_get_different_folders_even_without_case(one: str, other: str) -> None:
    if one != other:
        assert encode_name(one).lower() != encode_name(other).lower() or encode_name(one).isupper()
        assert encode_name(one) != encode_name(other)
        assert collection_name("p-", one) != collection_name("p-", other)


@pytest.mark.parametrize("name", ["default", "team_a", "a-b.c", "x" * 180])
def test_plain_names_stay_readable(name: str) -> None:
    assert encode_name(name) == name


@pytest.mark.parametrize("name", [".", "..", "a/b", "a\\b", "CON", "nul", "com1.txt", "a.", " ", "%41", "é", "x" * 181])
def test_other_names_are_encoded(name: str) -> None:
    encoded = encode_name(name)
    assert encoded != name
    assert not set(encoded) & set('/\\:*?"<>| ')


def test_capitals_do_not_meet_lower_case() -> None:
    assert encode_name("A").lower() != encode_name("a")


@pytest.mark.parametrize("name", ["", None, 3, "\ud800"])
def test_unusable_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidInputError):
        encode_name(name)  # type: ignore[arg-type]  # what a caller may pass
