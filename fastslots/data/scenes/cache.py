"""A file of rendered scenes that several processes may fill and read at once."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CHECKSUM_BYTES = 4
_NOT_ZERO = 1 << 31  # a hole in the file reads as zeros, which must not pass for a checksum


class SceneCache:
    """Images and masks by index, in one file of records of a fixed size.

    A record is a checksum, ``[3, S, S]`` bytes of image and ``[S, S]`` bytes of mask. A record that is
    missing, half written or damaged fails its checksum and counts as not there; two processes that
    write the same record write the same bytes. So there is nothing to lock, and nothing to repair
    after an interrupt.

    Args:
        folder: Made if missing.
        made_with: Everything that the images depend on, in JSON types; names the file.
        image_size: ``S``.

    Raises:
        OSError: If the folder or the file cannot be made or written.
        ValueError: If the description beside the file names other parameters.
    """

    def __init__(
        self, folder: str | os.PathLike[str], made_with: Mapping[str, Any], image_size: int
    ) -> None:
        text = json.dumps(dict(made_with), sort_keys=True, indent=1)
        name = f"scenes-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.path = Path(folder) / f"{name}.bin"
        self.image_size = image_size
        description = self.path.with_suffix(".json")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
            if not description.exists():
                temporary = description.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(text)
                temporary.replace(description)
            found = description.read_text()
        except OSError as error:
            raise OSError(f"cache {str(folder)!r} cannot be written: {error}") from error
        if found != text:
            raise ValueError(
                f"cache {str(self.path)!r} was made with other parameters: {description} must say "
                f"{text}; got {found}. Delete both files or choose another folder."
            )

    @property
    def _record_bytes(self) -> int:
        return _CHECKSUM_BYTES + 4 * self.image_size**2

    def read(self, indices: Iterable[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """The image and mask, uint8, of every index whose record is whole."""
        S = self.image_size
        found = {}
        with self.path.open("rb", buffering=0) as file:
            for index in set(indices):
                record = os.pread(file.fileno(), self._record_bytes, index * self._record_bytes)
                pixels = bytearray(record[_CHECKSUM_BYTES:])
                if record[:_CHECKSUM_BYTES] == _checksum(pixels):
                    planes = torch.frombuffer(pixels, dtype=torch.uint8).view(4, S, S)
                    found[index] = (planes[:3], planes[3])
        return found

    def write(self, scenes: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Stores images ``[3, S, S]`` and masks ``[S, S]``, uint8 on the CPU.

        Raises:
            OSError: If the disk is full or the file cannot be written; what is stored stays valid.
        """
        try:
            with self.path.open("r+b", buffering=0) as file:
                for index, (image, mask) in scenes.items():
                    pixels = bytes(torch.cat((image, mask[None])).flatten().tolist())
                    record = _checksum(pixels) + pixels
                    written = os.pwrite(file.fileno(), record, index * self._record_bytes)
                    if written != len(record):
                        raise OSError(f"only {written} of {len(record)} bytes were written")
        except OSError as error:
            raise OSError(f"cache {str(self.path)!r} cannot be written: {error}") from error


def _checksum(pixels: bytes | bytearray) -> bytes:
    return (zlib.crc32(pixels) | _NOT_ZERO).to_bytes(_CHECKSUM_BYTES, "little")
