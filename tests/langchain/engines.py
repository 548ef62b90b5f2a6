"""Engines for the tests of the LangChain adapter: tiny ones that answer noise in milliseconds, always the same."""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.core.tiny import tiny_reader

from nnm_core import NNM

BINS = "The bins are collected on Tuesday."
FALCON = "Maria leads the Falcon project."
KEY = "The spare key hangs behind the door."


def open_tiny(**options: Any) -> NNM:
    """An empty engine in RAM; its context has 512 byte tokens."""
    return NNM.open(tiny_reader(), **{"system": None, **options})


@cache
def shared_tiny() -> NNM:
    """One engine for tests that neither add nor count; it lives as long as the test run."""
    return open_tiny()
