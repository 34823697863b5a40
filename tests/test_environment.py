import shutil
import subprocess

import pytest
import torch

import fastslots
from fastslots.environment import describe_environment
from tests.benchmark.attention.cases import CPU

pytestmark = pytest.mark.slow


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's place in a checkout."""
    folder = tmp_path / "fastslots"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.setattr(fastslots, "__file__", str(folder / "__init__.py"))
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_names_the_commit_and_whether_the_sources_differ_from_it(package):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=package.parent, check=True, capture_output=True
        )

    git("init")
    assert describe_environment(CPU)["commit"] is None  # inside a checkout that does not track it
    git("add", ".")
    git("commit", "-m", "first")
    env = describe_environment(CPU)
    assert len(env["commit"]) == 40
    assert env["dirty"] is False
    (package / "new.py").touch()
    assert describe_environment(CPU)["dirty"] is True


def test_names_no_commit_outside_a_checkout(package):
    env = describe_environment(CPU)
    assert (env["commit"], env["dirty"]) == (None, None)
    assert env["torch"] == torch.__version__
    assert env["threads"] == torch.get_num_threads()
    assert env["device"] == env["cpu"] != ""
