"""Where memories live: the journal (texts and versions), the vector index and the states."""

from __future__ import annotations
