"""Files that are whole or not there, in a run folder that must not vanish."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: If it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path} could not be written: {error}") from error
        raise


def sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_run_folder(run: Path) -> None:
    """Raises if the run folder is no longer there, so that nothing makes a new one in its place.

    Raises:
        FileNotFoundError: Naming the folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(
            f"the run folder {run} has vanished; nothing was written in its place"
        )
