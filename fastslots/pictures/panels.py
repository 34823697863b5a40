"""Panels of pictures: images under colours, and what is left of them for each slot."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslots.pictures.segments import MOST_SEGMENTS, check_attn, palette, upsampled

SEGMENT_OPACITY = 0.6


def tinted_segments(image: Tensor, segments: Tensor) -> Tensor:
    """The image in gray under one colour for each segment, which is the same in every image.

    Args:
        image: ``[B, 3, S, S]`` in [0, 1].
        segments: Number of the segment at every pixel, from 0 to 255, ``[B, S, S]`` of an integer dtype.

    Returns:
        ``[B, 3, S, S]`` float32, detached, on the device of image.

    Raises:
        ValueError: If the shapes disagree, or segments are no such integers.
    """
    check_image(image)
    _check_labels("segments", segments, image)
    return _tinted(plain(image), segments.to(image.device, torch.int64))


def tinted_objects(image: Tensor, masks: Tensor) -> Tensor:
    """The same with the true objects, whose background has no tint.

    Args:
        image: ``[B, 3, S, S]`` in [0, 1].
        masks: Number of the object at every pixel, from 0, the background, to 255, ``[B, S, S]`` of an
            integer dtype.

    Returns:
        ``[B, 3, S, S]`` float32, detached, on the device of image.

    Raises:
        ValueError: If the shapes disagree, or masks are no such integers.
    """
    check_image(image)
    _check_labels("masks", masks, image)
    image, masks = plain(image), masks.to(image.device, torch.int64)
    objects = _tinted(image, masks.sub(1).clamp(min=0))
    return torch.where(masks.unsqueeze(1) > 0, objects, image.mean(1, keepdim=True))


def attended_slots(image: Tensor, attn: Tensor) -> Tensor:
    """What each slot attends to, as the SLATE authors show it: what it ignores is white.

    It is ``image * a + (1 - a)``, with a the attention of a slot repeated up to the size of the image.

    Args:
        image: ``[B, 3, S, S]`` in [0, 1].
        attn: Softmax over slots, ``[B, N, K]``, N = h² tokens in raster order, S a multiple of h.

    Returns:
        ``[B, K, 3, S, S]`` float32, detached, on the device of image.

    Raises:
        ValueError: If the shapes disagree, or attn holds NaN.
    """
    check_image(image)
    if attn.shape[:1] != image.shape[:1]:
        raise ValueError(f"attn must be [{len(image)}, N, K], as image; got {list(attn.shape)}")
    check_attn(attn, image.shape[-1])
    weights = upsampled(plain(attn).to(image.device), image.shape[-1])
    return _on_white(plain(image).unsqueeze(1), weights)


def painted_slots(slot_images: Tensor, masks: Tensor) -> Tensor:
    """What each slot paints where it shows, ``slot_image * mask + (1 - mask)``: white elsewhere.

    Args:
        slot_images: ``[B, K, 3, S, S]`` in [0, 1].
        masks: A softmax over slots, ``[B, K, S, S]``.

    Returns:
        ``[B, K, 3, S, S]`` float32, detached, on the device of slot_images.

    Raises:
        ValueError: If the shapes disagree.
    """
    check_slots("slot_images", slot_images)
    expected = [*slot_images.shape[:2], *slot_images.shape[3:]]
    if list(masks.shape) != expected:
        raise ValueError(f"masks must be {expected}, as slot_images; got {list(masks.shape)}")
    return _on_white(plain(slot_images), plain(masks).to(slot_images.device))


def plain(tensor: Tensor) -> Tensor:
    """Numbers to draw."""
    return tensor.detach().to(torch.float32)


def check_image(image: Tensor, name: str = "image") -> None:
    """Raises unless an image is ``[B, 3, S, S]``."""
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
        raise ValueError(f"{name} must be [B, 3, S, S]; got {list(image.shape)}")


def check_slots(name: str, slots: Tensor) -> None:
    """Raises unless slots are ``[B, K, 3, S, S]``."""
    shape = slots.shape
    if len(shape) != 5 or shape[1] < 1 or shape[2] != 3 or shape[3] != shape[4]:
        raise ValueError(f"{name} must be [B, K, 3, S, S] with K at least 1; got {list(shape)}")


def _on_white(images: Tensor, weights: Tensor) -> Tensor:
    """``[B, K or 1, 3, S, S]`` as far as weights ``[B, K, S, S]`` go, white beyond."""
    weights = weights.unsqueeze(2)
    return images * weights + (1 - weights)


def _tinted(image: Tensor, index: Tensor) -> Tensor:
    """The image in gray under the palette's colours of index, ``[B, S, S]`` int64 up to 255."""
    colours = torch.tensor(palette(MOST_SEGMENTS), dtype=torch.float32, device=image.device) / 255
    gray = image.mean(1, keepdim=True)
    return gray + SEGMENT_OPACITY * (colours[index].permute(0, 3, 1, 2) - gray)


def _check_labels(name: str, labels: Tensor, image: Tensor) -> None:
    expected = [len(image), *image.shape[2:]]
    if list(labels.shape) != expected or labels.is_floating_point():
        raise ValueError(
            f"{name} must be integers {expected}, as image; got {labels.dtype} {list(labels.shape)}"
        )
    low, high = (int(bound) for bound in labels.aminmax()) if labels.numel() else (0, 0)
    if low < 0 or high >= MOST_SEGMENTS:
        raise ValueError(f"{name} must lie in [0, {MOST_SEGMENTS}); got {low} to {high}")
