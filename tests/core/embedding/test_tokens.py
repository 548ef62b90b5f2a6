from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from tests.core.families import byte_tokenizer

from nnm_core.embedding.tokens import SparseEncoder, SparseSettings, term_id
from nnm_core.errors import InvalidInputError
from nnm_core.storage.index import SparseVector

WORDS = SparseSettings(stemmer=None, stop_words=frozenset(), gram_weight=0.0)


def weights(vector: SparseVector) -> dict[int, float]:
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))


def terms(text: str, settings: SparseSettings = WORDS) -> set[int]:
    return set(SparseEncoder(None, settings).query(text).indices.tolist())


def test_document_weights_are_bm25s() -> None:
    settings = SparseSettings(stemmer=None, stop_words=frozenset(), k1=1.2, b=0.75, average_length=4, gram_weight=0)
    got = weights(SparseEncoder(None, settings).document("red red blue green blue red"))
    for word, tf in Counter(["red", "red", "blue", "green", "blue", "red"]).items():
        expected = tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * 6 / 4))
        assert math.isclose(got[term_id("w", word)], expected, rel_tol=1e-6)
    assert len(got) == 3


def test_expected_words_count_with_their_frequency_and_make_no_document_longer() -> None:
    settings = SparseSettings(stemmer=None, stop_words=frozenset(), k1=1.2, b=0.75, average_length=4, gram_weight=0)
    made = SparseEncoder(None, settings)
    plain, got = (
        weights(made.document("red red blue")),
        weights(made.document("red red blue", {"sky": 0.4, "red": 0.5})),
    )
    norm = 1.2 * (0.25 + 0.75 * 3 / 4)
    assert math.isclose(got[term_id("w", "sky")], 0.4 * 2.2 / (0.4 + norm), rel_tol=1e-6)
    assert math.isclose(got[term_id("w", "red")], 2.5 * 2.2 / (2.5 + norm), rel_tol=1e-6)
    assert got[term_id("w", "blue")] == plain[term_id("w", "blue")]
    assert weights(made.document("red red blue", {})) == plain


def test_query_weights_are_counts() -> None:
    assert weights(SparseEncoder(None, WORDS).query("red red blue")) == {
        term_id("w", "red"): 2,
        term_id("w", "blue"): 1,
    }


def test_ids_are_stable_across_versions_and_fit_31_bits() -> None:
    assert term_id("w", "memory") == 1220651324
    assert term_id("w", "memory") != term_id("t", "memory")
    assert all(0 <= term_id("w", str(i)) < 2**31 for i in range(1000))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("cafe\u0301", "caf\u00e9"),
        ("１２３", "123"),
        ("don\u2019t", "don't"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
def test_spellings_of_one_word_are_one_term(left: str, right: str) -> None:
    assert terms(left) == terms(right)


def test_words_are_whole() -> None:
    assert terms("cat") & terms("category") == set()
    assert len(terms("p53 il-6 a.b")) == 5
    assert len(terms("don't")) == 1


def test_stemming_and_stop_words() -> None:
    english = SparseSettings(gram_weight=0.0)
    assert terms("the collections of bins", english) == terms("collection bin", english)
    assert terms("die Häuser", SparseSettings(stemmer="german", gram_weight=0)) >= terms(
        "häuser", SparseSettings(stemmer="german", gram_weight=0)
    )
    with pytest.raises(InvalidInputError, match="klingon"):
        SparseEncoder(None, SparseSettings(stemmer="klingon"))


def test_scripts_without_blanks_match_by_pairs() -> None:
    assert terms("東京都") == {term_id("w", "東京"), term_id("w", "京都")}
    assert terms("日") == {term_id("w", "日")}
    assert terms("GPT模型abc") == {term_id("w", "gpt"), term_id("w", "模型"), term_id("w", "abc")}


def test_pieces_let_unknown_words_match_in_part_with_less_weight() -> None:
    encoder = SparseEncoder(byte_tokenizer(), SparseSettings(stemmer=None, piece_weight=0.25, gram_weight=0))
    query = weights(encoder.query("zyx"))
    assert query.pop(term_id("w", "zyx")) == 1.0
    assert set(query.values()) == {0.25}
    assert set(query) & set(weights(encoder.document("zyxwv")))


def test_the_mean_length_decides_the_length_penalty() -> None:
    encoder = SparseEncoder(None, WORDS)
    texts = ["one two three", "one two three four five"]
    assert encoder.average_length(texts) == 4
    short, long = encoder.with_average_length(2), encoder.with_average_length(20)
    assert (long.document(texts[0]).values > short.document(texts[0]).values).all()
    assert encoder.average_length([]) == 1


@pytest.mark.parametrize("text", ["", " \n", "!?…", "\ud800"])
def test_texts_without_words_give_empty_vectors(text: str) -> None:
    vector = SparseEncoder(None, WORDS).document(text)
    assert vector.indices.shape == vector.values.shape == (0,)


def test_indices_are_ascending_and_typed() -> None:
    vector = SparseEncoder(None, WORDS).document(" ".join(map(str, range(300))))
    assert vector.indices.dtype == np.int64
    assert vector.values.dtype == np.float32
    assert (np.diff(vector.indices) > 0).all()


def test_settings_survive_a_mapping() -> None:
    settings = SparseSettings(stemmer="german", average_length=12.5)
    assert SparseSettings(**settings.to_dict()) == settings
    with pytest.raises(InvalidInputError, match="range"):
        SparseSettings(b=2)


def test_runs_of_characters_match_inflections_and_misspellings_with_less_weight() -> None:
    encoder = SparseEncoder(None, SparseSettings(stemmer=None, gram_weight=0.1))
    query = weights(encoder.query("hypertension"))
    assert query.pop(term_id("w", "hypertension")) == 1.0
    assert set(query) == {term_id("g", f" {'hypertension'} "[i : i + 4]) for i in range(11)}
    assert set(query.values()) == {np.float32(0.1)}
    assert len(set(query) & set(weights(encoder.document("hypertensive hyptertension")))) >= 8


def test_short_words_and_pairs_of_ideographs_have_no_runs() -> None:
    assert len(SparseEncoder(None, SparseSettings(stemmer=None)).query("il 東京")) == 2


def test_a_headline_counts_once_more() -> None:
    settings = SparseSettings(stemmer=None, gram_weight=0, b=0, k1=1.0)
    encoder = SparseEncoder(None, settings)
    found = weights(encoder.document("Owls\nThey hunt mice."))
    assert found[term_id("w", "owls")] > found[term_id("w", "mice")]
    assert encoder.length("Owls\nThey hunt mice.") == 4
    plain = weights(encoder.document("Owls hunt mice."))
    assert plain[term_id("w", "owls")] == plain[term_id("w", "mice")]
    paragraphs = weights(encoder.document("owls " * 80 + "\nmice"))
    assert paragraphs == weights(encoder.document("owls " * 80 + " mice"))


def test_expected_words_join_the_query() -> None:
    encoder = SparseEncoder(None, SparseSettings(gram_weight=0))
    found = weights(encoder.query("bins", {"collection": 0.25, "bin": 0.5}))
    assert found == {term_id("w", "bin"): 1.5, term_id("w", "collect"): 0.25}


def test_what_an_older_release_did_not_know_stays_off() -> None:
    old = {key: value for key, value in SparseSettings().to_dict().items() if key not in ("gram_weight", "headline")}
    assert SparseSettings.from_dict(old).gram_weight == 0
    assert SparseSettings.from_dict(old).headline == 0
    assert SparseSettings.from_dict(SparseSettings().to_dict()) == SparseSettings()
