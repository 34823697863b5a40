"""Paths on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def any_path(text: str | Path) -> Path:
    """The path that was typed.

    Raises:
        typer.BadParameter: If nothing was: an empty path would mean the current folder.
    """
    if text == "":
        raise typer.BadParameter("must be a path; got ''")
    return Path(text)


def check_are_files(images: Iterable[Path]) -> None:
    """Refuses images that are not there.

    Raises:
        FileNotFoundError: If one is no file.
    """
    for path in images:
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(
                f"IMAGE must be a PNG or JPEG file; got {str(path)!r}, which {why}"
            )


def check_apart(output: Path, data: str) -> None:
    """Refuses to write where images are read.

    Raises:
        ValueError: If the output would lie in the data folder.
    """
    if data != "scenes" and output.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(
            "output must lie outside of the data folder, whose images its pictures would join; "
            f"got {str(output)!r} in {data!r}"
        )


def utf8_path(text: str | Path) -> Path:
    """The same, for what holds checkpoints: TensorBoard and safetensors know no other bytes.

    Raises:
        typer.BadParameter: As `any_path`, and if it is no UTF-8.
    """
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(
            f"must be a path in UTF-8; got {str(text)!r}: rename it, or set PYTHONUTF8=1 if it is"
        ) from None
    return any_path(text)
