"""The folder of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastslots.training.folder import check_run_folder, lock_run


def test_a_run_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    check_run_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the run folder .*gone has vanished"):
        check_run_folder(tmp_path / "gone")


_TRY = """
import pathlib, sys
from fastslots.training.folder import lock_run
with lock_run(pathlib.Path(sys.argv[1])):
    pass
"""


@pytest.mark.slow
def test_a_run_is_locked_against_other_processes_until_its_file_is_closed(tmp_path: Path) -> None:
    def try_elsewhere() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _TRY, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True)

    with lock_run(tmp_path):
        refused = try_elsewhere()
        assert refused.returncode == 1
        assert f"another process is training in {tmp_path}" in refused.stderr
    assert try_elsewhere().returncode == 0
