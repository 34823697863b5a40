"""Which slot each pixel belongs to, and the colours of slots."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from fastslots._extras import require

if TYPE_CHECKING:
    from PIL import Image

MOST_SEGMENTS = 256


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
    check_attn(attn, image_size)
    winners = attn.argmax(2, keepdim=True).to(torch.uint8)
    return upsampled(winners, image_size).squeeze(1)


def mask_segmentation(masks: Tensor) -> Tensor:
    """Gives every pixel the slot whose mask is the greatest there.

    Args:
        masks: A softmax over slots, ``[B, K, S, S]``, K ≤ 256.

    Returns:
        Index of the slot, ``[B, S, S]`` uint8; the lowest where several are equally great.

    Raises:
        ValueError: If masks are no ``[B, K, S, S]``.
    """
    if masks.ndim != 4 or not 1 <= masks.shape[1] <= MOST_SEGMENTS:
        raise ValueError(
            f"masks must be [B, K, S, S] with K from 1 to {MOST_SEGMENTS}; got {list(masks.shape)}"
        )
    if masks.isnan().any():
        raise ValueError("masks must hold no NaN; got some: the slots or weights were not finite")
    return masks.argmax(1).to(torch.uint8)


def label_map(segments: Tensor, num_slots: int) -> Image.Image:
    """A picture whose pixels are the numbers of slots, in the colours of `tinted_segments`.

    Args:
        segments: Number of the slot at every pixel, below `num_slots`, ``[S, S]`` of an integer dtype.
        num_slots: How many colours there are, up to 256.

    Returns:
        A Pillow image with a palette.

    Raises:
        ValueError: If segments are no such integers, or there are more slots than colours.
        ImportError: If Pillow is missing.
    """
    if segments.ndim != 2 or segments.is_floating_point():
        raise ValueError(
            f"segments must be integers [S, S]; got {segments.dtype} {list(segments.shape)}"
        )
    if not 1 <= num_slots <= MOST_SEGMENTS:
        raise ValueError(f"num_slots must be from 1 to {MOST_SEGMENTS}; got {num_slots}")
    low, high = (int(bound) for bound in segments.aminmax())
    if low < 0 or high >= num_slots:
        raise ValueError(f"segments must lie in [0, num_slots={num_slots}); got {low} to {high}")
    pixels = segments.to("cpu", torch.uint8).contiguous()
    height, width = pixels.shape
    picture: Image.Image = require("PIL.Image", "train").frombytes(
        "P", (width, height), pixels.numpy().tobytes()
    )
    picture.putpalette([value for colour in palette(num_slots) for value in colour])
    return picture


def check_attn(attn: Tensor, image_size: int) -> None:
    """Raises unless attention is ``[B, h², K]`` without NaN, and h divides the image's size."""
    if attn.ndim != 3 or not 1 <= attn.shape[2] <= MOST_SEGMENTS:
        raise ValueError(
            f"attn must be [B, N, K] with K from 1 to {MOST_SEGMENTS}; got {list(attn.shape)}"
        )
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


def upsampled(tokens: Tensor, image_size: int) -> Tensor:
    """``[B, N, K]`` per pixel, ``[B, K, S, S]``: each token's entries repeated over its square."""
    side = math.isqrt(tokens.shape[1])
    scale = image_size // side
    grid = rearrange(tokens, "b (h w) k -> b k h w", h=side)
    return grid.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def palette(num_colours: int) -> list[tuple[int, int, int]]:
    """Distinct colours, RGB from 0 to 255; the first ones do not depend on how many there are."""
    # Steps of the golden ratio keep neighbours in the list apart on the colour circle.
    hues = [(0.58 + i * 0.618034) % 1 for i in range(num_colours)]
    saturation_value = ((0.65, 0.95), (0.6, 0.7), (0.35, 1.0))
    rgb = [colorsys.hsv_to_rgb(hue, *saturation_value[i // 5 % 3]) for i, hue in enumerate(hues)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]
