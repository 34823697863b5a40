"""Colours as a model sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastslots.data.images import ImageSet, check_not_empty, load_batch
from fastslots.models.precision import without_autocast

_BATCH = 100
_LEAST_VARIANCE = 1e-4
"""Of the largest: colours that hardly vary, as all but one direction of gray images', are not blown up."""


class Whitening(nn.Module):
    """An affine map of colours, ``W (x - μ)``: to [-1, 1], or, once it is fitted, to white ones.

    Fitted, μ is the mean image and ``W = Σ^(-1/2)`` with Σ the covariance of the colours around it (ZCA), so
    that the colours of objects count as much as the light on the floor, which varies far more.

    Args:
        image_shape: ``(C, S, S)``.

    Attributes:
        mean: μ, ``[C, S, S]``.
        matrix: W, ``[C, C]``.
        inverse: Of W.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels = image_shape[0]
        self.register_buffer("mean", torch.full(image_shape, 0.5))
        self.register_buffer("matrix", 2 * torch.eye(channels))
        self.register_buffer("inverse", 0.5 * torch.eye(channels))

    def forward(self, image: Tensor) -> Tensor:
        """The colours of images, ``[..., C, S, S]``."""
        with without_autocast(image):
            return _mix(self.matrix, image - self.mean)

    def invert(self, colours: Tensor) -> Tensor:
        """The images of colours, ``[..., C, S, S]``, not clamped."""
        with without_autocast(colours):
            return _mix(self.inverse, colours) + self.mean

    @torch.no_grad()
    def fit(self, images: ImageSet, num_images: int = 1_000) -> None:
        """Whitens the colours of the first so many images (all, if there are fewer), in float64 on the CPU.

        Raises:
            TypeError: If an image is no floating point tensor.
            ValueError: If there is none, one has another size or values beyond [0, 1], or holds NaN.
        """
        check_not_empty("images", images)
        count = min(num_images, len(images))
        C, S, _ = shape = tuple(self.mean.shape)
        total = torch.zeros(shape, dtype=torch.float64)
        products = torch.zeros(C, C, dtype=torch.float64)
        for first in range(0, count, _BATCH):
            numbers = list(range(first, min(first + _BATCH, count)))
            batch = load_batch(images, numbers, (C, S, S))[0].cpu().double()
            for number, image in zip(numbers, batch, strict=True):
                if image.isnan().any():
                    raise ValueError(f"images[{number}] must hold numbers to be whitened; got NaN")
            total += batch.sum(0)
            colours = batch.transpose(0, 1).flatten(1)
            products += colours @ colours.T
        mean = total / count
        means = mean.flatten(1)
        covariance = (products / count - means @ means.T) / S**2
        variances, directions = torch.linalg.eigh(covariance)
        least = max(_LEAST_VARIANCE * float(variances[-1]), torch.finfo(torch.float32).eps)
        scales = variances.clamp_min(least).sqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(directions @ (directions / scales).T)
        self.inverse.copy_(directions @ (directions * scales).T)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    return torch.einsum("dc,...chw->...dhw", matrix, images)
