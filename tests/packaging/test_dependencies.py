"""What a package imports is what it declares: an environment that has everything would hide a missing line."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
SOURCES = {
    "nnm-core": "src/nnm_core",
    "nnm-mini": "src/nnm_mini",
    "langchain-nnm": "langchain_nnm",
    "llamaindex-nnm": "llamaindex_nnm",
}

# Modules that people import themselves, with an extra installed.
OPTIONAL = ("langchain-nnm/langchain_nnm/middleware.py", "llamaindex-nnm/llamaindex_nnm/testing/")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(distribution: str) -> tuple[set[str], set[str]]:
    """Names that are always installed, and those together with every extra."""
    project = tomllib.loads((PACKAGES / distribution / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]

    def names(lines: list[str]) -> set[str]:
        return {canonical(re.split(r"[\s<>=!~\[;]", line, maxsplit=1)[0]) for line in lines}

    always = names(project["dependencies"]) | {distribution}
    return always, always | names(extras)


def imports(folder: Path) -> Iterator[tuple[str, bool, str]]:
    """(top-level module, whether it is imported with its file, place) of every import that runs."""
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        eager = {id(node) for node in tree.body}
        unused = {id(node) for branch in ast.walk(tree) if _only_types(branch) for node in ast.walk(branch)}
        for node in ast.walk(tree):
            if id(node) in unused:
                continue
            where = f"{file.relative_to(PACKAGES)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], id(node) in eager, where) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0], id(node) in eager, where


def _only_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("distribution", SOURCES)
def test_every_import_is_declared(distribution: str) -> None:
    always, with_extras = declared(distribution)
    providers = packages_distributions()
    missing = []
    for module, eager, where in imports(PACKAGES / distribution / SOURCES[distribution]):
        if module in sys.stdlib_module_names or module == "__future__":
            continue
        found = {canonical(name) for name in providers.get(module, [module])}
        eager = eager and not where.startswith(OPTIONAL)
        if not found & (always if eager else with_extras):
            missing.append(f"{where} imports {module}, of {sorted(found)}")
    assert not missing, "\n".join(missing)
