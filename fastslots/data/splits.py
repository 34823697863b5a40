"""Which images of a folder are to train on, to validate on and to test on."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test"]
SplitFiles = Mapping[Split, Sequence[str]]
"""The image files of each split: paths below the folder, with slashes, sorted."""

EXTENSIONS = (".png", ".jpg", ".jpeg")
_HELD_OUT = 0.15  # of train, where no folder is named val
_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def find_images(root: Path) -> list[str]:
    """The image files under a folder, as paths below it with slashes, sorted.

    These are the files that end in .png, .jpg or .jpeg in any case, in the folder and all below it, links
    followed, each folder once, names that begin with a dot left out. Links that lead nowhere are among
    them: whether a file can be read decides nothing here.

    Raises:
        ValueError: If there is none.
        OSError: If the folder, or one below it, cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    found = []
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        below = Path(folder).relative_to(root)
        for name in names:
            is_image = name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            if is_image and _may_be_opened(os.path.join(folder, name)):
                found.append((below / name).as_posix())
    if not found:
        raise ValueError(f"no image file ({', '.join(EXTENSIONS)}) under {str(root)!r}")
    return sorted(found)


def split_images(root: Path) -> SplitFiles:
    """The splits of a folder, which depend on the names of its files alone.

    Where folders below it are named train (or training), val (valid, validation) or test (testing), in any
    case, these are the splits, and every image must lie in one of them. Without one for val, the last 15% of
    train by path are val. Otherwise the files are split 70-15-15 in the order of their paths.

    Returns:
        All three splits, of which some may be empty.

    Raises:
        ValueError: If there is no image, or one lies in the folders of two splits, or beside them.
        OSError: If the folder, or one below it, cannot be listed.
    """
    names = find_images(root)
    files: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    beside: list[str] = []
    for name in names:
        split = _named_split(name, root)
        (beside if split is None else files[split]).append(name)
    if len(beside) == len(names):
        train_end, val_end = int(len(names) * 0.7), int(len(names) * 0.85)
        return {
            "train": names[:train_end],
            "val": names[train_end:val_end],
            "test": names[val_end:],
        }
    if beside:
        raise ValueError(
            f"every image of {str(root)!r} must lie in a folder named train, val or test, as "
            f"{_first(files)!r} does; got {len(beside)} in none of them, the first {beside[0]!r}: move them "
            "into one or elsewhere, or rename the folders if they are no splits"
        )
    if not files["val"]:
        end = int(len(files["train"]) * (1 - _HELD_OUT))
        files["train"], files["val"] = files["train"][:end], files["train"][end:]
    return files


def files_of(files: SplitFiles, split: Split, root: Path) -> Sequence[str]:
    """The files of a split.

    Args:
        files: What `split_images` found.
        split: Which of them.
        root: The folder, for the message.

    Raises:
        ValueError: If it has none.
    """
    if files[split]:
        return files[split]
    found = f"{len(files['train'])}, {len(files['val'])} and {len(files['test'])}"
    if are_named(files):
        raise ValueError(
            f"split {split!r} of {str(root)!r} is empty: by the names of its folders (and the last 15% of "
            f"train for val where no folder is named val) train, val and test have {found} image files; "
            f"add a folder named {split}, or choose another split or folder"
        )
    total = sum(map(len, files.values()))
    raise ValueError(
        f"split {split!r} of {str(root)!r} is empty: 70-15-15 of {total} image files gives {found}"
    )


def are_named(files: SplitFiles) -> bool:
    """Whether names of folders decided the splits."""
    return bool(_splits_named(_first(files)))


def _first(files: SplitFiles) -> str:
    return next(name for part in files.values() for name in part)


def _named_split(name: str, root: Path) -> Split | None:
    """The split that the folders of a file name; None if they name none."""
    splits = _splits_named(name)
    if len(splits) > 1:
        raise ValueError(
            f"the folders of an image must name one of train, val and test at most; got {name!r} in "
            f"{str(root)!r}: rename the folder that is no split"
        )
    return next(iter(splits), None)


def _splits_named(name: str) -> set[Split]:
    folders: Iterable[str] = name.lower().split("/")[:-1]
    return {_FOLDERS[folder] for folder in folders if folder in _FOLDERS}


def _may_be_opened(path: str) -> bool:
    """Whether opening a path would not wait for ever, as a pipe would; what is wrong shows then."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True
