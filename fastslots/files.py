"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under another name in its folder, and gives it its name once it is on the disk.

    Args:
        path: The file; one of that name is replaced. Its folder must be there.
        write: Writes to the path it is called with, which ends as `path` does.

    Raises:
        OSError: If it cannot be written; what was there before is untouched.
    """
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Has several files written as `write_whole`: none takes its name before all are on the disk.

    Args:
        files: What writes each; they take their names in this order.

    Raises:
        OSError: If one cannot be written; what was there before is untouched.
    """
    own = uuid.uuid4().hex  # another process may be writing the same files
    partials = {path: path.with_name(f".{path.stem}.{own}.partial{path.suffix}") for path in files}
    path = next(iter(files))
    try:
        for path, write in files.items():
            write(partials[path])
            sync(partials[path])
        for path, partial in partials.items():
            partial.replace(path)
            sync(path.parent)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as `write_whole`."""
    write_whole(path, lambda partial: partial.write_text(text))


def remove_partial(folder: Path) -> None:
    """Removes the files that `write_whole` was about to write in a folder when it was killed.

    Raises:
        OSError: If one cannot be removed.
    """
    for partial in folder.glob(".*.partial*"):
        if partial.is_file():
            partial.unlink()


def sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Makes a folder for results, and tries it: before minutes of work, not after.

    Raises:
        OSError: If nothing can be written there, naming it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"output must be a folder that can be made and written to; got {str(folder)!r}: {error.strerror}"
        ) from error
