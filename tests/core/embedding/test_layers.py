from __future__ import annotations

import numpy as np
import pytest
from tests.core.families import loaded

from nnm_core.embedding.layers import is_u_shaped, profile_layers, two_nn, window_rule
from nnm_core.embedding.pairs import self_labels, sentences
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.errors import InvalidInputError

TEXTS = [
    f"The {animal} lives near the {place}. It eats {food} in the morning hours. At night the {animal} sleeps on a tree."
    for animal in ("owl", "fox", "cat", "bat")
    for place in ("river", "old mill", "city wall")
    for food in ("mice", "berries")
]


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_known_cloud_in_a_wide_space(dimension: int) -> None:
    generator = np.random.default_rng(0)
    flat = generator.uniform(size=(1500, dimension))
    cloud = (flat @ generator.normal(size=(dimension, 40))).astype(np.float32)
    assert two_nn(cloud) == pytest.approx(dimension, rel=0.15)


def test_two_nn_of_a_curved_surface_and_of_hardly_any_points() -> None:
    generator = np.random.default_rng(1)
    sphere = generator.normal(size=(1500, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert two_nn(sphere.astype(np.float32)) == pytest.approx(2, rel=0.15)
    assert np.isnan(two_nn(np.zeros((50, 3), np.float32)))


def test_duplicates_do_not_distort_the_dimension() -> None:
    cloud = np.random.default_rng(2).normal(size=(400, 3)).astype(np.float32)
    assert two_nn(np.concatenate([cloud, cloud])) == pytest.approx(two_nn(cloud))


def test_the_papers_window_starts_at_the_minimum_behind_the_first_fifth() -> None:
    dimensions = [1.0, 2, 9, 8, 7, 6, 5, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9]
    assert window_rule(dimensions) == (7, 8)
    assert window_rule([3.0, 2.0, 1.0]) == (2,)
    with pytest.raises(InvalidInputError, match="No intrinsic"):
        window_rule([float("nan")] * 4)


def test_u_shape() -> None:
    assert is_u_shaped([9, 5, 2, 5, 9])
    assert not is_u_shaped([9, 5, 4, 3, 2])
    assert not is_u_shaped([2, 1.95, 1.9, 1.95, 2])


def test_a_profile_has_a_row_a_layer_and_chooses_layers_that_exist() -> None:
    model = loaded("qwen3")
    labels = self_labels(TEXTS, 12)
    profile = profile_layers(model, TEXTS, labels)
    assert [row.layer for row in profile.rows] == [0, 1, 2, 3]
    assert all(row.last_token > 0 and row.all_tokens > 0 for row in profile.rows)
    assert all(0 < (row.self_retrieval or 0) <= 1 for row in profile.rows[1:])
    assert set(profile.chosen) <= {0, 1, 2, 3}
    made = profile.settings(EmbeddingSettings())
    assert made.route == ("one-pass" if profile.chosen else "off")
    assert EmbeddingSettings.from_json(made.to_json()) == made
    assert profile.to_dict()["rows"][0]["layer"] == 0


def test_without_labels_the_papers_rule_decides() -> None:
    profile = profile_layers(loaded("qwen3"), TEXTS)
    assert profile.chosen == profile.by_rule == window_rule([row.last_token for row in profile.rows])
    assert profile.baseline is None


def test_sentences_are_cut_at_punctuation_and_lines() -> None:
    assert sentences("Title\nOne is e.g. 3.5 mm. Two (b)? Yes!") == ["Title", "One is e.g. 3.5 mm.", "Two (b)?", "Yes!"]
    assert sentences("今日は晴れ。明日は雨。") == ["今日は晴れ。", "明日は雨。"]
    assert sentences(" \n ") == []


def test_own_sentences_are_gone_from_the_rest_and_nothing_else_is() -> None:
    labels = self_labels(TEXTS, 100)
    assert len(labels) == len(TEXTS)
    assert len({label.document for label in labels}) == len(TEXTS)
    for label in labels:
        assert label.query in TEXTS[label.document]
        assert sorted([*sentences(label.rest), label.query]) == sorted(sentences(TEXTS[label.document]))
    assert self_labels(TEXTS, 5) == self_labels(TEXTS, 5)
    assert self_labels(["Too short.", "One word. Two."], 5) == []
