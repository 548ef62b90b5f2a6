"""pytest, or a word about where it comes from."""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'The conformance suite needs pytest: pip install "llamaindex-nnm[testing]"', name=error.name
    ) from error

__all__ = ["pytest"]
