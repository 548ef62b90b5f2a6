"""Neural Native Memory for LangChain."""

from __future__ import annotations

from langchain_nnm._version import __version__

__all__ = ["__version__"]
