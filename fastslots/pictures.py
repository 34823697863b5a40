"""Sample pictures: an image, its reconstructions and what each slot attends to."""

import colorsys
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from fastslots._extras import require
from fastslots.files import write_whole

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

PANEL_SIZE = 128
GAP = 4
MARGIN = 12
HEADING_HEIGHT = 32
FONT_SIZE = 14
BACKGROUND = (235, 237, 240)
INK = (60, 60, 60)
SEGMENT_OPACITY = 0.6


def segmentation(attn: Tensor, image_size: int) -> Tensor:
    """Gives every pixel the slot that attends to it most.

    Args:
        attn: Softmax over slots, ``[B, N, K]``, N = h² tokens in raster order, K ≤ 256.
        image_size: Side S of the images in pixels, a multiple of h.

    Returns:
        Index of the slot, ``[B, S, S]`` uint8; the lowest where several attend equally.

    Raises:
        ValueError: If attn is no ``[B, h², K]`` or S no multiple of h.
    """
    _check_attn(attn, image_size)
    winners = attn.argmax(2, keepdim=True).to(torch.uint8)
    return _upsampled(winners, image_size).squeeze(1)


def slot_panels(
    image: Tensor,
    recon: Tensor,
    through_slots: Tensor,
    attn: Tensor,
    masks: Tensor | None = None,
) -> Tensor:
    """Lays out one row of panels per image, as the SLATE authors show their samples.

    The panels are the image, the dVAE's reconstruction, the reconstruction through the slots, the
    image tinted by its segmentation, and for each slot ``image * a + (1 - a)``, with a its attention
    repeated up to the size of the image: what the slot ignores is white. With masks, the image
    tinted by its true objects stands before the segments.

    Args:
        image: ``[B, 3, S, S]`` in [0, 1].
        recon: The dVAE's reconstruction, shape of image.
        through_slots: The reconstruction through the slots, shape of image.
        attn: Softmax over slots, ``[B, N, K]``, N = h² tokens in raster order, S a multiple of h.
        masks: The number of the object at every pixel, ``[B, S, S]`` of an integer dtype; 0 for the
            background, which gets no tint.

    Returns:
        Panels, ``[B, 4 + K, 3, S, S]`` float32, detached, on the device of image; not clamped. With
        masks there is one more.

    Raises:
        ValueError: If the shapes disagree, naming the argument, the rule and the value.
    """
    _check_images(image, recon=recon, through_slots=through_slots)
    if attn.shape[:1] != image.shape[:1]:
        raise ValueError(f"attn must be [{len(image)}, N, K], as image; got {list(attn.shape)}")
    _check_attn(attn, image.shape[-1])
    image, recon, through_slots, attn = (
        tensor.detach().to(image.device, torch.float32)
        for tensor in (image, recon, through_slots, attn)
    )
    panels = [image, recon, through_slots]
    if masks is not None:
        _check_masks(masks, image)
        masks = masks.to(image.device)
        objects = _tinted(image, masks.long().sub(1).clamp(0, 255))
        panels.append(torch.where(masks.unsqueeze(1) > 0, objects, image.mean(1, keepdim=True)))
    panels.append(_tinted(image, segmentation(attn, image.shape[-1]).long()))
    weights = _upsampled(attn, image.shape[-1]).unsqueeze(2)
    slots = image.unsqueeze(1) * weights + (1 - weights)
    return torch.cat((torch.stack(panels, 1), slots), 1)


def save_panels(
    path: str | os.PathLike[str],
    image: Tensor,
    recon: Tensor,
    through_slots: Tensor,
    attn: Tensor,
    masks: Tensor | None = None,
    *,
    labels: bool = True,
    row_labels: Sequence[str] | None = None,
) -> None:
    """Writes the panels of ``slot_panels`` as a PNG file, one row per image.

    Small panels are enlarged by a whole factor. The file appears under its name only when it is
    complete; missing folders are made.

    Args:
        path: The file to write; one of that name is replaced.
        image: As in ``slot_panels``, as are recon, through_slots, attn and masks.
        recon: See there.
        through_slots: See there.
        attn: See there.
        masks: See there.
        labels: Write what each column shows above it, and under each slot's name the colour that
            the slot has in the column of segments.
        row_labels: What to write to the left of each row; one line each.

    Raises:
        ValueError: As ``slot_panels``, if there is no image, or not one label for each.
        OSError: If the file cannot be written.
        ImportError: If Pillow is missing.
    """
    panels = slot_panels(image, recon, through_slots, attn, masks)
    if not len(panels):
        raise ValueError("image must hold at least one image; got 0")
    if row_labels is not None and len(row_labels) != len(panels):
        raise ValueError(
            f"row_labels must be one for each of the {len(panels)} images; got {len(row_labels)}"
        )
    headings = _headings(attn.shape[2], with_masks=masks is not None) if labels else []
    picture = _arranged(panels, headings, row_labels or [])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: picture.save(partial, format="PNG"))


def _check_images(image: Tensor, **others: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
        raise ValueError(f"image must be [B, 3, S, S]; got {list(image.shape)}")
    for name, other in others.items():
        if other.shape != image.shape:
            raise ValueError(
                f"{name} must have the shape of image, {list(image.shape)}; got {list(other.shape)}"
            )


def _check_masks(masks: Tensor, image: Tensor) -> None:
    expected = [len(image), *image.shape[2:]]
    if list(masks.shape) != expected or masks.is_floating_point():
        raise ValueError(
            f"masks must be integers {expected}, as image; got {masks.dtype} {list(masks.shape)}"
        )


def _tinted(image: Tensor, index: Tensor) -> Tensor:
    """The image in gray under the palette's colours of index, ``[B, S, S]`` int64 up to 255."""
    palette = torch.tensor(_palette(256), dtype=torch.float32, device=image.device) / 255
    gray = image.mean(1, keepdim=True)
    return gray + SEGMENT_OPACITY * (palette[index].permute(0, 3, 1, 2) - gray)


def _check_attn(attn: Tensor, image_size: int) -> None:
    if attn.ndim != 3 or not 1 <= attn.shape[2] <= 256:
        raise ValueError(f"attn must be [B, N, K] with K from 1 to 256; got {list(attn.shape)}")
    side = math.isqrt(attn.shape[1])
    if side < 1 or side * side != attn.shape[1]:
        raise ValueError(f"attn must have a square number of tokens; got N = {attn.shape[1]}")
    if attn.isnan().any():
        raise ValueError("attn must hold no NaN; got some: the slots or weights were not finite")
    if image_size < side or image_size % side:
        raise ValueError(
            f"image_size must be a multiple of {side}, the square root of the {attn.shape[1]}"
            f" tokens; got {image_size}"
        )


def _upsampled(tokens: Tensor, image_size: int) -> Tensor:
    """``[B, N, K]`` per pixel, ``[B, K, S, S]``: each token's entries repeated over its square."""
    side = math.isqrt(tokens.shape[1])
    scale = image_size // side
    grid = rearrange(tokens, "b (h w) k -> b k h w", h=side)
    return grid.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def _palette(num_colours: int) -> list[tuple[int, int, int]]:
    """Distinct colours, RGB from 0 to 255; the first ones do not depend on how many there are."""
    # Steps of the golden ratio keep neighbours in the list apart on the colour circle.
    hues = [(0.58 + i * 0.618034) % 1 for i in range(num_colours)]
    saturation_value = ((0.65, 0.95), (0.6, 0.7), (0.35, 1.0))
    rgb = [colorsys.hsv_to_rgb(hue, *saturation_value[i // 5 % 3]) for i, hue in enumerate(hues)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]


def _headings(num_slots: int, *, with_masks: bool) -> list[tuple[str, tuple[int, int, int]]]:
    """What stands above each column, and the colour of the bar under it."""
    plain = ["image", "dVAE", "slots", *(["objects"] if with_masks else []), "segments"]
    slots = enumerate(_palette(num_slots), 1)
    return [(word, BACKGROUND) for word in plain] + [(f"slot {i}", colour) for i, colour in slots]


def _arranged(
    panels: Tensor,
    headings: Sequence[tuple[str, tuple[int, int, int]]],
    row_labels: Sequence[str],
) -> "Image.Image":
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
