"""States in RAM: within a budget, least recently used out first, nothing kept that must be forgotten."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from nnm_core.injection.tree import Node, StateTree
from nnm_core.states.state import PlacedState

SIZE = 2 * 4 * 10  # keys and values of ten float32


def node(name: str, *points: str, tens: int = 1) -> Node:
    states = torch.zeros(1, tens, 10)
    return Node(PlacedState(name, tens, ((states, states.clone()),)), frozenset(points))


def names(tree: StateTree) -> str:
    return "".join(name for name in "abcdefgh" if name in tree._nodes)


def test_what_is_put_is_got() -> None:
    tree = StateTree()
    kept = node("a")
    tree.put(kept)
    assert tree.get("a") is kept
    assert tree.get("b") is None
    assert len(tree) == 1
    assert tree.nbytes == SIZE


def test_the_least_recently_used_goes_first() -> None:
    tree = StateTree(3 * SIZE)
    for name in "abc":
        tree.put(node(name))
    tree.get("a")
    tree.put(node("d"))
    assert names(tree) == "acd"
    assert tree.nbytes == 3 * SIZE


def test_a_large_one_pushes_several_out() -> None:
    tree = StateTree(4 * SIZE)
    for name in "abcd":
        tree.put(node(name))
    tree.put(node("e", tens=3))
    assert names(tree) == "de"
    assert tree.nbytes == 4 * SIZE


def test_one_that_is_larger_than_the_budget_is_not_kept_and_pushes_nothing_out() -> None:
    tree = StateTree(2 * SIZE)
    tree.put(node("a"))
    tree.put(node("b", tens=3))
    assert names(tree) == "a"


def test_pinned_ones_stay() -> None:
    tree = StateTree(2 * SIZE)
    tree.put(node("a"), pin=True)
    for name in "bcd":
        tree.put(node(name))
    assert names(tree) == "ad"
    tree.put(node("e", tens=9), pin=True)
    assert "e" in names(tree), "pinned even beyond the budget"


def test_putting_again_replaces_and_does_not_count_twice() -> None:
    tree = StateTree()
    tree.put(node("a"))
    tree.put(node("a", tens=2))
    assert tree.nbytes == 2 * SIZE
    assert len(tree) == 1


def test_forgetting_takes_all_that_has_seen_the_memory() -> None:
    tree = StateTree()
    tree.put(node("a"), pin=True)
    tree.put(node("b", "one"))
    tree.put(node("c", "one", "two"))
    tree.put(node("d", "three"))
    tree.forget(["two", "never seen"])
    assert names(tree) == "abd"
    tree.forget(["one"])
    assert names(tree) == "ad"
    assert tree.nbytes == 2 * SIZE


def test_clear() -> None:
    tree = StateTree(SIZE)
    tree.put(node("a"), pin=True)
    tree.clear()
    assert len(tree) == tree.nbytes == 0
    tree.put(node("a"))
    tree.put(node("b"))
    assert names(tree) == "b", "the pin is gone too"


def test_a_budget_of_nothing_keeps_nothing() -> None:
    tree = StateTree(0)
    tree.put(node("a"))
    assert len(tree) == 0


def test_threads_keep_the_books_right() -> None:
    tree = StateTree(20 * SIZE)

    def work(number: int) -> None:
        tree.put(node(f"{number % 50}", str(number % 7)))
        tree.get(f"{(number * 7) % 50}")
        if number % 11 == 0:
            tree.forget([str(number % 7)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(2000)))
    assert tree.nbytes == sum(kept.state.nbytes for kept in tree._nodes.values()) <= 20 * SIZE
