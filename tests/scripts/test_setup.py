"""The scripts that make .venv and run everything, with stubs for the programs that they call."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> calls
[[ -n "${BROKEN:-}" && "$*" == *$BROKEN* ]] && exit 1
exit 0
"""


class Project:
    """A folder with the scripts, and a .venv of stubs that write down their arguments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("scripts", ".venv/bin"):
            (root / folder).mkdir(parents=True)
        for name in ("setup", "test", "constraints.txt"):
            shutil.copy(SCRIPTS / name, root / "scripts")
        shutil.copy(SCRIPTS.parent / "pyproject.toml", root)
        for name in ("python", "ruff", "mypy"):
            stub = root / ".venv" / "bin" / name
            stub.write_text(STUB)
            stub.chmod(0o755)

    def run(self, *command: str, broken: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"BROKEN": broken}
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )

    def calls(self) -> list[str]:
        """The commands since the last look."""
        path = self.root / "calls"
        calls = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_setup_installs_the_tested_versions_once(project: Project) -> None:
    for expected in (1, 0):
        assert project.run("scripts/setup").returncode == 0
        installs = project.calls()
        assert len(installs) == expected
        assert all("--constraint scripts/constraints.txt" in install for install in installs)


@pytest.mark.parametrize("name", ["pyproject.toml", "scripts/constraints.txt"])
def test_setup_installs_again_when_the_requirements_changed(project: Project, name: str) -> None:
    project.run("scripts/setup")
    stamp = (project.root / ".venv" / "fastslots-installed").stat().st_mtime
    os.utime(project.root / name, (stamp + 10, stamp + 10))
    project.calls()
    assert project.run("scripts/setup").returncode == 0
    assert len(project.calls()) == 1


def test_setup_takes_the_newest_allowed_where_the_tested_versions_are_not_to_be_had(
    project: Project,
) -> None:
    run = project.run("scripts/setup", broken="--constraint")
    assert run.returncode == 0
    assert "cannot be had: taking the newest allowed" in run.stderr
    constrained, free = project.calls()
    assert constrained == f"{free} --constraint scripts/constraints.txt"


def test_setup_installs_the_versions_of_another_file_if_asked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSTRAINTS", "other.txt")
    assert project.run("scripts/setup").returncode == 0
    assert "--constraint other.txt" in project.calls()[0]


def test_setup_that_cannot_install_fails_and_tries_again_next_time(project: Project) -> None:
    run = project.run("scripts/setup", broken="install")
    assert run.returncode == 1
    assert "installing the requirements failed" in run.stderr
    project.calls()
    assert project.run("scripts/setup").returncode == 0
    assert len(project.calls()) == 1


CHECKS = ["ruff check .", "ruff format --check .", "mypy "]
PARALLEL = "--numprocesses logical --maxprocesses 8 --dist worksteal"
PARALLEL += " --durations 40 --durations-min 4"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [],
            ["python scripts/check_kernels --fast", f"python -m pytest -m not gpu {PARALLEL}"],
        ),
        (
            ["--all"],
            ["python scripts/check_kernels", f"python -m pytest -m not gpu {PARALLEL}"],
        ),
        (["--fast"], [f"python -m pytest -m not gpu and not slow {PARALLEL}"]),
        (["--fast", "-x"], [f"python -m pytest -m not gpu and not slow {PARALLEL} -x"]),
        (["tests/kernels", "-x"], ["python -m pytest -m not gpu tests/kernels -x"]),
    ],
)
def test_the_lanes_of_the_tests(
    project: Project, arguments: list[str], expected: list[str]
) -> None:
    assert project.run("scripts/test", *arguments).returncode == 0
    _install, *calls = project.calls()
    assert calls == CHECKS + expected


@pytest.mark.parametrize("broken", ["check .", "--check", "scripts/check_kernels", "pytest"])
def test_the_tests_fail_with_any_of_their_parts(project: Project, broken: str) -> None:
    assert project.run("scripts/test", broken=broken).returncode == 1
    assert broken in project.calls()[-1]
