from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.langchain.engines import BINS, FALCON, KEY, open_tiny

from nnm_core import NNM


@pytest.fixture
def nnm() -> Iterator[NNM]:
    """A tiny engine with three memories: bins, falcon, key."""
    with open_tiny() as opened:
        opened.add([BINS, FALCON, KEY], ids=["bins", "falcon", "key"], metadatas=[{"n": 1}, {"n": 2}, {"n": 3}])
        yield opened
