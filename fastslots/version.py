"""The version, which pyproject.toml says."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path


def find_version(root: Path) -> str:
    """Of the checkout in a folder, whatever else is installed; else of the installed package."""
    pyproject = root / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "fastslots":
            return str(project["version"])
    try:
        return importlib.metadata.version("fastslots")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


__version__ = find_version(Path(__file__).parents[1])
