"""How well slots find objects, and images come back: one number per image, for any batch on any device.

An image's number does not depend on the rest of its batch. NaN marks an image that has nothing to be
measured, such as no object at all: it is left out of a mean over images, as VideoSAUR does.
Objects and clusters are labels in a map of integers; which label stands for which object is of no account.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LABEL = 255


def adjusted_rand_index(true: Tensor, pred: Tensor, *, ignore_background: bool = False) -> Tensor:
    """Agreement of two segmentations, counted over pairs of pixels and corrected for chance.

    With n the number of pixels that two labels share, r = Σ n(n - 1), a and b the same sums over the
    true and the predicted labels alone, and E = ab / (N(N - 1)) for N pixels, it is
    ``(r - E) / ((a + b) / 2 - E)``; 1 where the denominator is 0, as for two maps of a single label
    or a single pixel.

    Args:
        true: Labels from 0 to 255, ``[B, ...]`` of an integer dtype. Video: ``[B, T, S, S]``.
        pred: Predicted labels from 0 to 255, shape of true, any integer dtype.
        ignore_background: Leave out the pixels whose true label is 0: the foreground ARI (FG-ARI).

    Returns:
        ``[B]`` float64, dimensionless, at most 1, 0 on average for chance; NaN for an image without a
        pixel to count.

    Raises:
        TypeError: If a map is no tensor of integers.
        ValueError: If the shapes disagree, or a label is out of range.

    Source:
        Hubert and Arabie 1985; the form of Kipf et al. 2022 (SAVi).
    """
    shared = _shared_pixels(true, pred)
    if ignore_background:
        shared = shared[:, 1:]
    num_pixels = shared.sum((1, 2))
    r = _ordered_pairs(shared).sum((1, 2)).double()
    a = _ordered_pairs(shared.sum(2)).sum(1).double()
    b = _ordered_pairs(shared.sum(1)).sum(1).double()
    pairs = _ordered_pairs(num_pixels).double()
    # In this order a map of a single label has E equal to a to the last bit: its denominator is 0.
    expected = a * (b / pairs.clamp(min=1))
    denominator = (a + b) / 2 - expected
    index = torch.where(denominator == 0, 1.0, (r - expected) / denominator)
    return torch.where(num_pixels > 0, index, torch.nan)


def mean_best_overlap(true: Tensor, pred: Tensor) -> Tensor:
    """The best overlap (IoU) that any predicted label has with an object, mean over an image's objects.

    Label 0 of true is the background, which is no object; a predicted label pays for what it covers
    there. Every predicted label may be the best of several objects.

    Args:
        true: Labels from 0 to 255, ``[B, ...]`` of an integer dtype.
        pred: Predicted labels from 0 to 255, shape of true, any integer dtype.

    Returns:
        ``[B]`` float64 in [0, 1], dimensionless; NaN for an image without objects.

    Raises:
        TypeError: If a map is no tensor of integers.
        ValueError: If the shapes disagree, or a label is out of range.

    Source:
        Pont-Tuset et al. 2017 (mBO), as in Seitzer et al. 2023 (DINOSAUR).
    """
    shared = _shared_pixels(true, pred)
    areas, pred_areas = shared.sum(2, keepdim=True), shared.sum(1, keepdim=True)
    overlap = shared.double() / (areas + pred_areas - shared).clamp(min=1)
    best, is_object = overlap[:, 1:].amax(2), areas[:, 1:, 0] > 0
    # 0 / 0 is the NaN of an image without objects; an object that is not there has no overlap.
    return best.sum(1) / is_object.sum(1)


def squared_error(image: Tensor, recon: Tensor) -> Tensor:
    """Squared error of a reconstruction, summed over an image's values.

    Args:
        image: Images in [0, 1], ``[B, ...]``.
        recon: Their reconstructions, shape of image.

    Returns:
        ``[B]`` float64, in squared units of the full range of a value.

    Raises:
        ValueError: If the shapes disagree.
    """
    if image.shape != recon.shape or image.ndim < 2:
        raise ValueError(
            f"image and recon must have one shape [B, ...]; got {list(image.shape)} and "
            f"{list(recon.shape)}"
        )
    return (image.double() - recon.double()).square().flatten(1).sum(1)


def slots_used(attn: Tensor) -> Tensor:
    """Number of slots that attend most to at least one token.

    Args:
        attn: Softmax over slots, ``[B, N, K]``. The first of several equal slots counts.

    Returns:
        ``[B]`` float64, from 1 to K (0 without tokens); NaN for an image whose attention holds one.

    Raises:
        ValueError: If attn is no ``[B, N, K]`` with K at least 1.
    """
    if attn.ndim != 3 or attn.shape[2] < 1:
        raise ValueError(f"attn must be [B, N, K] with K at least 1; got {list(attn.shape)}")
    used = torch.zeros(attn.shape[0], attn.shape[2], dtype=torch.float64, device=attn.device)
    best, slot = attn.max(2)  # NaN is the greatest of all
    number = used.scatter_(1, slot, 1.0).sum(1)
    return torch.where(best.isnan().any(1), torch.nan, number)


def _shared_pixels(true: Tensor, pred: Tensor) -> Tensor:
    """Number of pixels that have a true and a predicted label, ``[B, true labels, predicted]`` int64."""
    _check_labels("true", true)
    _check_labels("pred", pred)
    if true.shape != pred.shape:
        raise ValueError(
            f"pred must have the shape of true, {list(true.shape)}; got {list(pred.shape)}"
        )
    true, pred = true.flatten(1).long(), pred.to(true.device).flatten(1).long()
    rows, columns = (int(m.amax()) + 1 if m.numel() else 1 for m in (true, pred))
    image = torch.arange(len(true), device=true.device).unsqueeze(1)
    cells = (image * rows + true) * columns + pred
    counts = torch.bincount(cells.flatten(), minlength=len(true) * rows * columns)
    return counts.view(len(true), rows, columns)


def _check_labels(name: str, labels: object) -> None:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be a tensor of integers; got {got}")
    if labels.ndim < 2:
        raise ValueError(
            f"{name} must be [B, ...], a map for every image; got {list(labels.shape)}"
        )
    if labels.dtype == torch.uint8 or not labels.numel():
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high > MAX_LABEL:
        raise ValueError(f"{name} must hold labels from 0 to {MAX_LABEL}; got {low} to {high}")


def _ordered_pairs(count: Tensor) -> Tensor:
    """Ordered pairs of different pixels among so many, exact in int64."""
    return count * (count - 1)
