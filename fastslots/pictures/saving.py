"""Rows of panels as PNG files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from fastslots._extras import require
from fastslots.files import write_whole
from fastslots.pictures.panels import check_image, check_slots, plain
from fastslots.pictures.segments import palette

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

PANEL_SIZE = 128
GAP = 4
MARGIN = 12
HEADING_HEIGHT = 32
FONT_SIZE = 14
BACKGROUND = (235, 237, 240)
INK = (60, 60, 60)


def save_panels(
    path: str | os.PathLike[str],
    columns: Mapping[str, Tensor],
    slots: Tensor,
    *,
    labels: bool = True,
    row_labels: Sequence[str] | None = None,
) -> None:
    """Writes panels as a PNG file, one row per image: the columns, and then one panel for each slot.

    Small panels are enlarged by a whole factor. The file appears under its name only when it is
    complete; missing folders are made.

    Args:
        path: The file to write; one of that name is replaced.
        columns: Panels of one shape, ``[B, 3, S, S]``, by what is written above them. Values beyond [0, 1]
            are clamped.
        slots: Panels of the slots, ``[B, K, 3, S, S]``.
        labels: Write what each column shows above it, and under each slot's name the colour that
            the slot has in `tinted_segments`.
        row_labels: What to write to the left of each row; one line each.

    Raises:
        ValueError: If the shapes disagree, there is no image, or not one label for each.
        OSError: If the file cannot be written.
        ImportError: If Pillow is missing.
    """
    panels = _joined(columns, slots)
    if row_labels is not None and len(row_labels) != len(panels):
        raise ValueError(
            f"row_labels must be one for each of the {len(panels)} images; got {len(row_labels)}"
        )
    headings = _headings(columns, slots.shape[1]) if labels else []
    picture = _arranged(panels, headings, row_labels or [])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: picture.save(partial, format="PNG"))


def _joined(columns: Mapping[str, Tensor], slots: Tensor) -> Tensor:
    """All panels, ``[B, columns + K, 3, S, S]`` float32."""
    if not columns:
        raise ValueError("columns must hold one at least; got none")
    first, image = next(iter(columns.items()))
    check_image(image, first)
    if not len(image):
        raise ValueError(f"{first} must hold at least one image; got 0")
    for name, column in columns.items():
        if column.shape != image.shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {list(image.shape)}; got {list(column.shape)}"
            )
    check_slots("slots", slots)
    if slots[:, 0].shape != image.shape:
        batch, *rest = image.shape
        expected = f"[{batch}, K, {', '.join(map(str, rest))}]"
        raise ValueError(f"slots must be {expected}, as {first}; got {list(slots.shape)}")
    stacked = torch.stack([plain(column).to(image.device) for column in columns.values()], 1)
    return torch.cat((stacked, plain(slots).to(image.device)), 1)


def _headings(columns: Iterable[str], num_slots: int) -> list[tuple[str, tuple[int, int, int]]]:
    """What stands above each column, and the colour of the bar under it."""
    slots = enumerate(palette(num_slots), 1)
    return [(name, BACKGROUND) for name in columns] + [(f"slot {i}", colour) for i, colour in slots]


def _arranged(
    panels: Tensor,
    headings: Sequence[tuple[str, tuple[int, int, int]]],
    row_labels: Sequence[str],
) -> Image.Image:
    """The panels on a light background, enlarged, under their headings and beside their labels."""
    pil = require("PIL.Image", "train")
    font = require("PIL.ImageFont", "train").load_default(FONT_SIZE)
    grid = _grid(panels)
    top = HEADING_HEIGHT if headings else MARGIN
    left = MARGIN
    if row_labels:
        left += math.ceil(max(font.getlength(label) for label in row_labels)) + MARGIN
    size = (grid.shape[1] + left + MARGIN, grid.shape[0] + top + MARGIN)
    picture: Image.Image = pil.new("RGB", size, BACKGROUND)
    picture.paste(pil.fromarray(grid.numpy()), (left, top))
    pen: ImageDraw.ImageDraw = require("PIL.ImageDraw", "train").Draw(picture)
    side = _scale(panels) * panels.shape[3]
    for column, (heading, colour) in enumerate(headings):
        x = left + column * (side + GAP)
        pen.text((x + side / 2, top - 9), heading, fill=INK, font=font, anchor="ms")
        pen.rectangle((x, top - 5, x + side - 1, top - 3), fill=colour)
    for row, label in enumerate(row_labels):
        y = top + row * (side + GAP) + side / 2
        pen.text((left - MARGIN, y), label, fill=INK, font=font, anchor="rm")
    return picture


def _scale(panels: Tensor) -> int:
    """Whole factor that enlarges small panels to about PANEL_SIZE."""
    return max(1, PANEL_SIZE // panels.shape[-1])


def _grid(panels: Tensor) -> Tensor:
    """The enlarged panels with gaps between them, ``[height, width, 3]`` uint8 on the CPU."""
    pixels = panels.nan_to_num().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    scale = _scale(panels)
    pixels = pixels.repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    background = torch.tensor(BACKGROUND, dtype=torch.uint8).view(3, 1, 1)
    side = pixels.shape[-1]
    cells = background.repeat(*pixels.shape[:2], 1, side + GAP, side + GAP)
    cells[..., :side, :side] = pixels
    return rearrange(cells, "b panel c h w -> (b h) (panel w) c")[:-GAP, :-GAP].contiguous()
