"""Where and with what a measurement was made."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import torch

import fastslots


class Environment(TypedDict):
    """The header of a results file. None: not installed, or not in a git checkout."""

    device: str
    cpu: str
    threads: int
    python: str
    torch: str
    triton: str | None
    fastslots: str
    commit: str | None
    dirty: bool | None  # whether the sources of the two packages differ from the commit
    timestamp: str  # UTC, ISO 8601


def describe_environment(device: torch.device) -> Environment:
    """What runs where, now."""
    cpu = _cpu_model()
    commit, dirty = checkout()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "fastslots": fastslots.__version__,
        "commit": commit,
        "dirty": dirty,
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def checkout() -> tuple[str | None, bool | None]:
    """Commit of the checkout that tracks this package, and whether its sources differ from it."""
    package = Path(fastslots.__file__).parent
    # An installed copy may lie in someone else's checkout, under .venv: there it is not tracked.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    sources = [".", "../kernels/fastslots_kernels"]
    changes = _git(package, "status", "--porcelain", "--", *sources)
    return _git(package, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """Standard output, or None if git is missing or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
