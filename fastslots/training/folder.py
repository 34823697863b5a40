"""The folder of a run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_run_folder(run: Path) -> None:
    """Raises if a run folder is no longer there, so that nothing makes a new one in its place.

    Raises:
        FileNotFoundError: Naming the folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(
            f"the run folder {run} has vanished; nothing was written in its place"
        )


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keeps other processes from training in a run folder, until this one is done with it or dead.

    Raises:
        OSError: If another process has locked it, or it cannot be locked.
    """
    check_run_folder(run)
    with (run / ".lock").open("w") as file:
        try:
            # Of the process, not of the file: workers that outlive a killed run do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise OSError(
                f"another process is training in {run}: wait until it has ended"
            ) from None
        yield
