from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _owned_event_loop() -> Iterator[None]:
    """LlamaIndex and pytest-asyncio ask for "the" event loop outside of any; one made for them would stay unclosed."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
