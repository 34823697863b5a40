"""Folders of PNG and JPEG images."""

import errno
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from fastslots.data.decoding import CorruptImageError, load_image, open_image
from fastslots.data.splits import files_of, find_images, split_images
from fastslots_kernels.checks import check_choice, check_count

__all__ = ["CorruptImageError", "ImageFolder", "load_image"]

Split = Literal["train", "val", "test", "all"]
MAX_THREADS = 8
NAMES_IN_WARNING = 5

# What the system says of one file that has gone, or of a link that leads nowhere.
_ABSENT = (
    errno.ENOENT,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ESTALE,
)


class ImageFolder(Dataset[Tensor]):
    """The PNG and JPEG images under a folder, as ``load_image`` reads them.

    The files are those that end in .png, .jpg or .jpeg in any case, in the folder and all below it,
    links followed, each folder once, names that begin with a dot left out. Folders named train, val
    (or valid, validation) and test, at any depth, are the splits. Without one for val, the last 15%
    of train are val. Where no folder has such a name, the files are split 70-15-15 in the order of
    their paths. The split depends on the names alone, corrupt files counted: a file that breaks or
    is repaired moves no other image from one part to another. One that is added or removed may.

    Construction reads the header of every file of the split and leaves out, with one warning, the
    files that have none. A file whose data turn out to be damaged when it is read is warned about
    once and replaced by the next readable image of the split, the first after the last. A link that
    leads nowhere and a file that vanishes count as corrupt, unless the whole folder is gone. In a
    DataLoader with workers, each worker warns and keeps a record of its own, which
    ``fastslots.training`` brings back.

    Args:
        root: The folder.
        image_size: Side S of the images in pixels.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``, every image whatever its folder.
        strict: Raise CorruptImageError for a corrupt file instead.
        names: The files of the split, as ``fastslots.data.splits`` names them. Default: those found.

    Attributes:
        paths: The files of the split that have a readable header, in order.
        corrupt: The corrupt files of the split found so far, each with the reason.

    Raises:
        TypeError: If image_size is no int.
        ValueError: If image_size is below 1, the split unknown or empty, no image is
            under root, or some images lie beside the folders of splits.
        OSError: If root is missing or no folder, or a folder or file cannot be read.
        CorruptImageError: If every image of the split is corrupt.
        ImportError: If Pillow is missing.

    Source:
        The split 70-15-15 and the resizing are those of the SLATE authors' loaders.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        image_size: int,
        split: Split = "train",
        strict: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        image_size = check_count("image_size", image_size, 1)
        check_choice("split", split, get_args(Split))
        self.root = Path(root)
        self.image_size = image_size
        self.split = split
        self.strict = strict
        self.corrupt: dict[Path, str] = {}
        if names is None:
            names = self._find()
        if not names:
            raise ValueError("names must hold at least one file; got none")
        self.paths = self._with_readable_header([self.root / name for name in names])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Returns one image, ``[3, S, S]`` float32 in [0, 1]."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Returns the images of a batch, decoded by several threads outside DataLoader workers."""
        positions = [self._position(index) for index in indices]
        threads = 1 if get_worker_info() else min(MAX_THREADS, _num_cpus(), len(positions))
        if threads < 2:
            return [self._replaced(p, self._attempt(p)) for p in positions]
        with ThreadPoolExecutor(threads) as pool:
            images = list(pool.map(self._attempt, positions))
        return [self._replaced(p, image) for p, image in zip(positions, images, strict=True)]

    def _find(self) -> Sequence[str]:
        """The files of the split."""
        if self.split == "all":
            return find_images(self.root)
        return files_of(split_images(self.root), self.split, self.root)

    def _position(self, index: int) -> int:
        """Position in paths that an index, negative or not, means."""
        if not -len(self.paths) <= index < len(self.paths):
            raise IndexError(f"index must be below {len(self.paths)} images; got {index}")
        return index % len(self.paths)

    def _attempt(self, position: int) -> Tensor | CorruptImageError:
        """The image, or the error; called from several threads, so it records nothing."""
        path = self.paths[position]
        if path in self.corrupt:
            return CorruptImageError(self.corrupt[path])
        try:
            return load_image(path, self.image_size)
        except OSError as error:
            return self._of_the_file(path, error)

    def _of_the_file(self, path: Path, error: OSError) -> CorruptImageError:
        """An error as one of the file alone; raises what is none, such as a folder that is gone."""
        if isinstance(error, CorruptImageError):
            return error
        if error.errno not in _ABSENT or not _holds_something(self.root):
            raise error
        return CorruptImageError(f"{str(path)!r} cannot be read: {error.strerror}")

    def _replaced(self, position: int, image: Tensor | CorruptImageError) -> Tensor:
        """The image, or the next that can be decoded in place of an error."""
        for _ in self.paths:
            if isinstance(image, Tensor):
                return image
            if self.strict:
                raise image
            path = self.paths[position]
            if path not in self.corrupt:
                self.corrupt[path] = str(image)
                warnings.warn(f"{image}; the next image replaces it", stacklevel=3)
            position = (position + 1) % len(self.paths)
            image = self._attempt(position)
        raise self._none_left()

    def _with_readable_header(self, paths: list[Path]) -> list[Path]:
        """The files that open as images; records the others and warns about them together."""
        for path in paths:
            error = self._header_error(path)
            if error is not None and self.strict:
                raise error
            if error is not None:
                self.corrupt[path] = str(error)
        if len(self.corrupt) == len(paths):
            raise self._none_left()
        if self.corrupt:
            reasons = "; ".join(list(self.corrupt.values())[:NAMES_IN_WARNING])
            warnings.warn(
                f"{len(self.corrupt)} of {len(paths)} files of split {self.split!r} are corrupt and"
                f" left out: {reasons}{'; ...' if len(self.corrupt) > NAMES_IN_WARNING else ''}",
                stacklevel=3,
            )
        return [path for path in paths if path not in self.corrupt]

    def _header_error(self, path: Path) -> CorruptImageError | None:
        try:
            with open_image(path):
                return None
        except OSError as error:
            return self._of_the_file(path, error)

    def _none_left(self) -> CorruptImageError:
        first = next(iter(self.corrupt.values()))
        return CorruptImageError(
            f"every one of the {len(self.corrupt)} images of split {self.split!r} of"
            f" {str(self.root)!r} is corrupt: {first}"
        )


def _num_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _holds_something(folder: Path) -> bool:
    """Whether a folder is there; a disk that is gone leaves an empty one."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(True for _ in entries)
    return False
