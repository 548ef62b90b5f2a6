"""What holds for all tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose costs nobody has measured: states are loaded wherever that is exact."""
    monkeypatch.setenv("NNM_COSTS", "off")
