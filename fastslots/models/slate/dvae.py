"""The discrete VAE: 4 x 4 patches to tokens of a vocabulary and back."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots.models.slate.token_sampling import TokenWeights
from fastslots_kernels.layers import why_called

_WIDTH = 64


class DVAE(nn.Module):
    """Encodes every patch on its own into token logits, and decodes token weights into an image.

    Of a model that whitens them its images are colours, in both directions: `SLATE.detokenize` gives images.

    Args:
        vocab_size: Tokens to choose from, ``V``.
        image_channels: Channels ``C`` of the images.

    Attributes:
        encoder: Images ``[B, C, S, S]`` to token logits ``[B, V, S / 4, S / 4]``.
        decoder: Token weights ``[B, V, S / 4, S / 4]`` to images ``[B, C, S, S]``, not clamped.

    Source:
        Singh et al. 2022, appendix; layers, names and initialisation as in the public SLATE code.
    """

    def __init__(self, vocab_size: int, image_channels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _ConvBlock(image_channels, _WIDTH, kernel_size=4, stride=4),
            *(_ConvBlock(_WIDTH, _WIDTH) for _ in range(6)),
            _output_conv(_WIDTH, vocab_size),
        )
        self.decoder = _Decoder(
            _ConvBlock(vocab_size, _WIDTH),
            *_upsampling_stage(),
            *_upsampling_stage(),
            _output_conv(_WIDTH, image_channels),
        )

    def check_read(self) -> None:
        """Raises if a layer that is read in parts does something else than its tensors say.

        Raises:
            RuntimeError: If one has hooks, a ``forward`` of its own or another shape, naming it.
        """
        for name, kind, options in _READ:
            layer = self.get_submodule(name)
            why = why_called(layer, kind) or _why_unlike(layer, options)
            if why is not None:
                raise RuntimeError(
                    f"dvae.{name} must compute what its tensors say, as SLATE reads these; it {why}: take "
                    "torch.nn.utils.parametrizations, or change the layers around it"
                )

    def features(self, image: Tensor) -> Tensor:
        """What the token logits are made of, ``[B, N, 64]``, for ``image`` ``[B, C, S, S]``."""
        self.check_read()
        features: Tensor = self.encoder[:-1](image)
        return features.flatten(2).transpose(1, 2)

    def token_weights(self) -> TokenWeights:
        """The last layer of the encoder and the first of the decoder, as matrices."""
        to_logits = cast(nn.Conv2d, self.encoder[-1])
        from_tokens = cast(_ConvBlock, self.decoder[0]).m
        bias = cast(Tensor, to_logits.bias)
        return TokenWeights(to_logits.weight[:, :, 0, 0], bias, from_tokens.weight[:, :, 0, 0])

    def decode(self, features: Tensor) -> Tensor:
        """Images ``[B, C, S, S]``, not clamped, of the decoder's first features ``[B, N, 64]``."""
        self.check_read()
        side = math.isqrt(features.shape[1])
        grid = features.transpose(1, 2).reshape(-1, _WIDTH, side, side)
        image: Tensor = self.decoder[1:](cast(_ConvBlock, self.decoder[0]).normalize(grid))
        return image

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Decodes one token per patch.

        A 1 x 1 convolution of a one-hot vector is a row of its weight: the first layer is a look-up.

        Args:
            ids: Tokens in [0, V) in row-major order of a square image, ``[B, N]`` int64.

        Returns:
            Images, ``[B, C, 4 * sqrt(N), 4 * sqrt(N)]``, not clamped.
        """
        return self.decode(F.embedding(ids, self.token_weights().from_tokens.t()))


class _ConvBlock(nn.Module):
    """Convolution without bias, one-group normalisation with scale and shift, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        padding = (kernel_size - stride) // 2
        self.m = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        nn.init.kaiming_uniform_(self.m.weight, nonlinearity="relu")
        self.weight = nn.Parameter(torch.ones(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(self.m(x))

    def normalize(self, x: Tensor) -> Tensor:
        return F.relu(F.group_norm(x, 1, self.weight, self.bias), inplace=True)


class _Decoder(nn.Sequential):
    """Layers that end in a pixel shuffle and a 1 x 1 convolution, computed in the other order.

    The two commute. Convolved first, the full-size map has the channels of an image, not 64.
    """

    def forward(self, x: Tensor) -> Tensor:
        *layers, shuffle, output = self
        for layer in layers:
            x = layer(x)
        conv = cast(nn.Conv2d, output)
        # The shuffle reads its channels as (64, 2, 2): a product over the first of these, said as a
        # convolution, since a view to these would need to know the memory format.
        same = torch.eye(4, dtype=conv.weight.dtype, device=conv.weight.device)
        weight = torch.kron(conv.weight[:, :, 0, 0], same)
        image: Tensor = shuffle(F.conv2d(x, weight[:, :, None, None]))
        return image + cast(Tensor, conv.bias).view(-1, 1, 1)


def _upsampling_stage() -> list[nn.Module]:
    """Doubles the side of a feature map."""
    return [
        _ConvBlock(_WIDTH, _WIDTH, kernel_size=3),
        _ConvBlock(_WIDTH, _WIDTH),
        _ConvBlock(_WIDTH, _WIDTH),
        _ConvBlock(_WIDTH, 4 * _WIDTH),
        nn.PixelShuffle(2),
    ]


def _output_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


def _why_unlike(layer: nn.Module, options: Mapping[str, Any]) -> str | None:
    """The first option in which a layer is not what it should be, or None."""
    for name, wanted in options.items():
        found = len(cast(nn.Sequential, layer)) if name == "len" else getattr(layer, name)
        found = found is not None if name == "bias" else found
        if found != wanted:
            return f"has {name} {found} in place of {wanted}"
    return None


_PER_PIXEL = {
    "kernel_size": (1, 1),
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
    "groups": 1,
}
# Layers that are not called, or not as a whole.
_READ: tuple[tuple[str, type[nn.Module], Mapping[str, Any]], ...] = (
    ("encoder", nn.Sequential, {"len": 8}),
    ("encoder.7", nn.Conv2d, {**_PER_PIXEL, "bias": True}),
    ("decoder", _Decoder, {"len": 12}),
    ("decoder.0", _ConvBlock, {}),
    ("decoder.0.m", nn.Conv2d, {**_PER_PIXEL, "bias": False}),
    ("decoder.10", nn.PixelShuffle, {"upscale_factor": 2}),
    ("decoder.11", nn.Conv2d, {**_PER_PIXEL, "bias": True}),
)
