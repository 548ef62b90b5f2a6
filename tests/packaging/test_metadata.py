"""One version everywhere, and files that people rely on are in the packages."""

from __future__ import annotations

import importlib
import re
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"nnm-core": "nnm_core", "langchain-nnm": "langchain_nnm", "llamaindex-nnm": "llamaindex_nnm"}


def project(distribution: str) -> dict[str, object]:
    return tomllib.loads((ROOT / "packages" / distribution / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("distribution", "module"), PACKAGES.items())
def test_versions_agree(distribution: str, module: str) -> None:
    assert importlib.import_module(module).__version__ == version(distribution) == version("nnm-core")


def test_the_changelog_has_a_section_for_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == version("nnm-core")


@pytest.mark.parametrize("module", PACKAGES.values())
def test_packages_are_typed(module: str) -> None:
    assert files(module).joinpath("py.typed").is_file()


@pytest.mark.parametrize("distribution", PACKAGES)
def test_python_versions_and_licence(distribution: str) -> None:
    table = project(distribution)
    assert table["requires-python"] == ">=3.11,<3.15"
    classifiers = table["classifiers"]
    assert isinstance(classifiers, list)
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    licence = (ROOT / "packages" / distribution / "LICENSE").read_text()
    assert licence == (ROOT / "LICENSE").read_text()


def test_the_server_in_docker_compose_matches_the_pinned_client() -> None:
    image = re.search(r"qdrant/qdrant:v(\d+\.\d+)", (ROOT / "docker-compose.yml").read_text())
    client = re.search(r"^qdrant-client==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert image and client and image[1] == client[1]
