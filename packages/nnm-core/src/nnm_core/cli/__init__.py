"""The command line ``nnm``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from nnm_core.cli.app import app, main

__all__ = ["app", "main"]
