"""Exact tests against values worked out by hand."""

from __future__ import annotations

import pytest

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.statistics import holm, mcnemar, mcnemar_p


def test_mcnemar_counts_only_items_on_which_the_two_differ() -> None:
    ours = [1, 1, 1, 1, 1, 0, 0, 1]
    theirs = [0, 0, 0, 0, 0, 1, 0, 1]
    found = mcnemar(ours, theirs)
    assert (found.ours, found.theirs, found.count) == (5, 1, 8)
    # 2 * (C(6,0) + C(6,1)) / 2**6
    assert found.p == pytest.approx(2 * 7 / 64)


def test_counting_each_item_three_times_makes_nothing_out_of_it_significant() -> None:
    assert mcnemar_p(15, 3) == pytest.approx(0.0075, abs=1e-4)
    assert mcnemar_p(5, 1) == pytest.approx(0.2188, abs=1e-4)


def test_two_equal_systems_do_not_differ() -> None:
    assert mcnemar([1, 0, 1], [1, 0, 1]).p == 1.0


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="one length"):
        mcnemar([1, 0], [1])


def test_holm_corrects_for_the_number_of_tests_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
