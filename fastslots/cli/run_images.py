"""Keeps a run to the images that it began with."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fastslots.cli.run_config import read_config
from fastslots.data.source import DataSource
from fastslots.data.split_record import FILE, find_changes, find_trained, read_record
from fastslots.data.splits import Split, SplitFiles, are_named
from fastslots.training.processes import from_main, on_main

if TYPE_CHECKING:
    from accelerate import PartialState


def files_to_train_on(
    processes: PartialState, source: DataSource, resumed: Path | None
) -> SplitFiles | None:
    """The files of each split, as the main process sees them, in every process; None for scenes.

    Args:
        processes: Of the run.
        source: Its images.
        resumed: Its folder, if it goes on.

    Raises:
        ValueError: If the folder has no clear splits, or has changed since the run began.
        OSError: If the folder is missing, or one in it cannot be listed.
    """
    found: list[SplitFiles | None] = [None]

    def look() -> None:
        files = found[0] = source.split_files()
        if files is not None and resumed is not None:
            _check_unchanged(resumed, source.data, files, "begin a new run")

    on_main(processes, look)
    return from_main(processes, found[0])


def files_to_evaluate(run: Path | None, source: DataSource, split: Split) -> SplitFiles | None:
    """The files of each split; None for scenes.

    Args:
        run: That the checkpoint is of, if any.
        source: The images.
        split: That is to be measured.

    Raises:
        ValueError: If these are the run's images, but not as they were when it began, or images of another
            folder that it was trained on, or the folder has no clear splits.
        OSError: If the folder is missing, or one in it cannot be listed.
    """
    files = source.split_files()
    if files is None or run is None:
        return files
    trained = DataSource(**read_config(run)["data"]).data
    if trained == "scenes":
        return files
    if os.path.realpath(trained) == os.path.realpath(source.data):
        _check_unchanged(run, source.data, files, "name a folder of other images by --data")
        return files
    record = read_record(run)
    if record is not None and split != "train":
        known = find_trained(record, Path(trained), files[split], Path(source.data))
        if known:
            raise ValueError(
                f"split {split!r} of {source.data} must hold no image that {run} was trained on; got "
                f"{len(known)}, the first {known[0]!r}: leave out --data, or name a folder of other images"
            )
    return files


def corrupt_line(paths: Collection[object]) -> str:
    """What a command says at its end of the corrupt files that it has met."""
    return f"corrupt images left out or replaced: {len(paths)} ({', '.join(map(str, paths))})"


def _check_unchanged(run: Path, folder: str, files: SplitFiles, otherwise: str) -> None:
    record = read_record(run)
    changes = None if record is None else find_changes(record, files)
    if changes is not None:
        raise ValueError(
            f"the images in {folder} must be those that {run} began with; got {changes}: put the folder "
            f"back as it was, or {otherwise}"
        )
    if record is None and are_named(files):
        raise ValueError(
            f"{run} has no {FILE}, as it was begun by an earlier version, which trained on images of all "
            f"folders in {folder}, whatever their names: {otherwise}"
        )
    if record is None:
        typer.echo(
            f"warning: {run} has no {FILE}, as it was begun by an earlier version: whether the images in "
            f"{folder} are those that it began with is not known",
            err=True,
        )
