"""Encoders and spatial broadcast decoders: of pixels, as Locatello et al.'s, and of patches."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from fastslots.initialization import conv, conv_transpose, linear
from fastslots.models.autoencoder.config import BROADCAST_SIZE, SlotAutoencoderConfig
from fastslots.models.precision import wide_dtype


def linear_of(config: SlotAutoencoderConfig) -> Callable[[int, int], nn.Linear]:
    """What makes the linear layers of a backbone.

    Those of pixels begin as Keras' do. Those of patches begin smaller, as PyTorch's do: Muon's steps have one
    size, so that large weights would take longer to turn.
    """
    return linear if config.backbone == "pixels" else nn.Linear


class SoftPositions(nn.Module):
    """Adds to every place of a square grid a linear map of its distances from the four sides.

    Args:
        size: Places per side.
        dense: The linear map.

    Source:
        Locatello et al. 2020, appendix E.2.
    """

    def __init__(self, size: int, dense: nn.Linear) -> None:
        super().__init__()
        self.size, self.dense = size, dense

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size², width]``, places in raster order; or broadcast from ``[..., 1, width]``."""
        moved: Tensor = x + self.dense(self._distances())
        return moved

    def _distances(self) -> Tensor:
        """From the upper, left, lower and right side, ``[size², 4]``; a side is 1 long."""
        # Not kept: a buffer would keep the rounding of the dtype it was made in, and lose its values on the
        # meta device.
        weight = self.dense.weight
        line = torch.linspace(0, 1, self.size, dtype=wide_dtype(weight), device=weight.device)
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack((y, x, 1 - y, 1 - x), 2).flatten(0, 1).to(weight.dtype)


class Encoder(nn.Module):
    """Colours ``[B, C, S, S]`` to features ``[B, N, width]`` with their positions.

    Args:
        config: The settings: of pixels four 5 x 5 convolutions, of patches a strided one and two 3 x 3.
    """

    def __init__(self, config: SlotAutoencoderConfig) -> None:
        super().__init__()
        C, width, patch = config.image_channels, config.width, config.patch_size
        if config.backbone == "pixels":
            convs = [conv(C, width, 5), *(conv(width, width, 5) for _ in range(3))]
        else:
            first = nn.Conv2d(C, width, 2 * patch, patch, padding=patch // 2)
            convs = [first, *(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))]
        self.convs = nn.ModuleList(convs)
        self.positions = SoftPositions(config.grid_size, linear_of(config)(4, width))

    def forward(self, colours: Tensor) -> Tensor:
        """See the class."""
        x = colours.contiguous(memory_format=torch.channels_last)
        for layer in self.convs:
            x = layer(x).relu_()
        features: Tensor = self.positions(x.permute(0, 2, 3, 1).flatten(1, 2))
        return features


def to_patches(image: Tensor, patch_size: int) -> Tensor:
    """``[..., S, S]`` as ``[..., G, P]``: G patches in raster order, of P pixels each."""
    return rearrange(image, "... (h p) (w q) -> ... (h w) (p q)", p=patch_size, q=patch_size)


def from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """``[..., S, S]`` of its patches: the inverse of `to_patches`."""
    return rearrange(
        patches,
        "... (h w) (p q) -> ... (h p) (w q)",
        h=math.isqrt(patches.shape[-2]),
        p=patch_size,
        q=patch_size,
    )


class PixelDecoder(nn.Module):
    """Slots ``[B, K, D]`` to the C channels of a colour and the mask's logits, ``[B, K, 1, S²]`` each.

    Broadcasts each slot to an 8 x 8 grid, adds positions, doubles by 5 x 5 transposed convolutions.

    Args:
        config: The settings.
    """

    def __init__(self, config: SlotAutoencoderConfig) -> None:
        super().__init__()
        D, width = config.slot_size, config.width
        self.positions = SoftPositions(BROADCAST_SIZE, linear_of(config)(4, D))
        doublings = (config.image_size // BROADCAST_SIZE).bit_length() - 1
        self.convs = nn.ModuleList(
            [
                *(conv_transpose(width if i else D, width, 5, 2) for i in range(doublings)),
                conv_transpose(width, width, 5),
            ]
        )
        self.out = conv_transpose(width, config.image_channels + 1, 3)

    def forward(self, slots: Tensor) -> list[Tensor]:
        """See the class."""
        grid = self.positions(slots.flatten(0, 1).unsqueeze(1))
        x = rearrange(grid, "bk (h w) d -> bk d h w", h=BROADCAST_SIZE)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.convs:
            x = layer(x).relu_()
        image: Tensor = self.out(x)
        return list(to_patches(image, image.shape[-1]).unflatten(0, slots.shape[:2]).unbind(2))


class PatchDecoder(nn.Module):
    """The same in patches, ``[B, K, G, P]``, each by an MLP of (slot, position).

    A spatial broadcast decoder whose convolutions are 1 x 1.

    Args:
        config: The settings.
    """

    def __init__(self, config: SlotAutoencoderConfig) -> None:
        super().__init__()
        width, self.num_pixels = config.width, config.patch_size**2
        self.slot = nn.Linear(config.slot_size, width, bias=False)
        self.positions = SoftPositions(config.grid_size, nn.Linear(4, width))
        self.mlp = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.out = nn.Linear(width, (config.image_channels + 1) * self.num_pixels)

    def forward(self, slots: Tensor) -> list[Tensor]:
        """See the class."""
        grid = self.positions(self.slot(slots).unsqueeze(2)).relu_()
        # As a matrix: in place on a view, which a layer gives of anything else, autograd would copy.
        x = grid.flatten(0, 2)
        for layer in self.mlp:
            x = layer(x).relu_()
        return [part.unflatten(0, grid.shape[:3]) for part in self.out(x).split(self.num_pixels, 1)]
