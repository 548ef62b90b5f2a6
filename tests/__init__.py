"""Tests; a package, so that helper modules can be imported as `tests.core.families`."""
