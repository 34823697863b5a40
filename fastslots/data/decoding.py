"""PNG and JPEG files as square RGB tensors."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastslots._extras import require
from fastslots_kernels.checks import check_count

if TYPE_CHECKING:
    from PIL import Image

# What Pillow raises on damaged files, besides its two errors on decompression bombs.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
_EXIF_ORIENTATION = 0x0112


class CorruptImageError(OSError):
    """A file that is no image, ends or breaks off too early, or is not there; the message names it."""


def load_image(path: str | os.PathLike[str], image_size: int) -> Tensor:
    """Reads a PNG or JPEG file as a square RGB image.

    The whole image is resized to the square, without a crop, by Pillow's antialiased bilinear
    filter. EXIF's orientation is applied. Where alpha is below 255 the image is laid on white: the
    colour of a transparent pixel is arbitrary. An opaque alpha channel, CLEVR's, is dropped by
    that. 16-bit gray is rounded to 8 bits.

    Args:
        path: The file; its content tells its format, not its name.
        image_size: Side S of the result in pixels.

    Returns:
        Image, ``[3, S, S]`` float32 in [0, 1].

    Raises:
        TypeError: If image_size is no int.
        ValueError: If it is below 1.
        CorruptImageError: If the file is no PNG or JPEG image, cannot be decoded, or is so large
            that Pillow takes it for a decompression bomb. It is an OSError and names the file.
        OSError: If the file is missing or cannot be read. It names the file.
        ImportError: If Pillow is missing.
    """
    image_size = check_count("image_size", image_size, 1)
    with open_image(path) as image:
        image.load()
        resampling = require("PIL.Image", "train").Resampling.BILINEAR
        square = _to_rgb(image).resize((image_size, image_size), resampling)
        pixels = _upright(square, _orientation(image)).tobytes()
    rows = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(image_size, image_size, 3)
    return rows.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator["Image.Image"]:
    """Opens an image, of which the header alone is read yet.

    Raises:
        CorruptImageError: As `load_image`, also for what Pillow raises in the block.
        OSError: If the file is missing or cannot be read. It names the file.
        ImportError: If Pillow is missing.
    """
    pil = require("PIL.Image", "train")
    bombs = (pil.DecompressionBombError, pil.DecompressionBombWarning)
    try:
        with pil.open(path, formats=("PNG", "JPEG")) as image:
            yield image
    except (*_DECODING_ERRORS, *bombs) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # The system's error (permission, device), not a damaged file.
            error.filename = error.filename or os.fspath(path)
            raise
        # Pillow's own text for this case holds the path once more.
        unknown = isinstance(error, pil.UnidentifiedImageError)
        reason = "not a PNG or JPEG image" if unknown else str(error) or type(error).__name__
        raise CorruptImageError(f"{os.fspath(path)!r} cannot be decoded: {reason}") from error


def _to_rgb(image: "Image.Image") -> "Image.Image":
    """Converts any mode of PNG and JPEG files to RGB, transparent pixels on white."""
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit gray has clipped at 255 in some versions.
        gray = image.convert("I").point(lambda value: value * (1 / 257) + 0.5)
        return gray.convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white: Image.Image = require("PIL.Image", "train").new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        return white.convert("RGB")
    return image.convert("RGB")


def _orientation(image: "Image.Image") -> int:
    """EXIF's orientation, 1 (upright) where the EXIF data are missing or damaged."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _DECODING_ERRORS:
        return 1


def _upright(image: "Image.Image", orientation: int) -> "Image.Image":
    """Turns an image from EXIF's orientation; those of its own EXIF data, which may be damaged, go."""
    image.info.clear()
    image.getexif()[_EXIF_ORIENTATION] = orientation
    upright: Image.Image = require("PIL.ImageOps", "train").exif_transpose(image)
    return upright
