"""Neural Native Memory for LlamaIndex."""

from __future__ import annotations

from llamaindex_nnm._version import __version__

__all__ = ["__version__"]
