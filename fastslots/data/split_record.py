"""What a run keeps about the folder it is trained on: the name of every file, by split."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fastslots.data.splits import Split, SplitFiles
from fastslots.files import write_text

FILE = "images.json"
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def write_record(run: Path, files: SplitFiles) -> None:
    """Writes ``images.json`` to a run folder, unless it says the same already.

    Raises:
        OSError: If it cannot be written.
    """
    text = json.dumps({split: list(files[split]) for split in SPLITS}, indent=1) + "\n"
    path = run / FILE
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)


def read_record(run: Path) -> SplitFiles | None:
    """What `write_record` wrote; None if the run has no such file.

    Raises:
        ValueError: If it is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        return {split: [str(name) for name in record[split]] for split in SPLITS}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def find_changes(before: SplitFiles, now: SplitFiles) -> str | None:
    """Says how the files of a folder differ from those recorded; None if they do not.

    A split that had no files then may have some now: a folder named test may come later.
    """
    compared = [split for split in SPLITS if before[split]]
    old = {name: split for split in compared for name in before[split]}
    new = {name: split for split in compared for name in now[split]}
    added = [name for name in new if name not in old]
    removed = [name for name in old if name not in new]
    moved = [name for name, split in old.items() if new.get(name, split) != split]
    said = [
        _said(added, "added, the first to", new),
        _said(removed, "removed, the first from", old),
    ]
    if moved:
        ways = Counter(f"{old[name]} to {new[name]}" for name in moved)
        said.append("moved by that: " + ", ".join(f"{n} from {way}" for way, n in ways.items()))
    return "; ".join(filter(None, said)) or None


def _said(names: list[str], what: str, split_of: dict[str, Split]) -> str:
    return f"{len(names)} {what} {split_of[names[0]]}: {names[0]!r}" if names else ""


def find_trained(record: SplitFiles, trained: Path, names: Sequence[str], root: Path) -> list[str]:
    """Those of some files that a run has trained on, wherever the two folders lie in each other.

    Args:
        record: Of the run.
        trained: Its folder of images.
        names: The files, below `root`.
        root: Their folder.
    """
    base, here = os.path.realpath(trained), os.path.realpath(root)
    seen = {os.path.join(base, name) for name in record["train"]}
    return [name for name in names if os.path.join(here, name) in seen]
