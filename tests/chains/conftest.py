from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.chains.world import Receipts, fill, wide_reader
from tests.langchain.scripted import open_scripted

from nnm_core import NNM


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with NNM.open(wide_reader(), system=None) as opened:
        yield fill(opened)


@pytest.fixture
def scripted() -> Iterator[NNM]:
    """An engine whose model calls tools."""
    with open_scripted() as opened:
        yield fill(opened)


@pytest.fixture
def receipts() -> Receipts:
    return Receipts()
