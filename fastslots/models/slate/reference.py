"""SLATE in the form of the public code: eager, one-hot, uncached.

The oracle of `fastslots.SLATE` and the baseline of its benchmarks. Entries of the state dict, order of
the random draws and arithmetic are those of the public code: tokens are one-hot tensors of width 1 + V,
causal masks are entries of the state dict and filled in by hand, slot attention makes keys and values and
is differentiated through all iterations, and generation runs the whole prefix again for every token.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslots.models.slate.config import SLATEConfig
from fastslots.models.slate.reference_layers import PublicDecoder, PublicSlotEncoder, linear


class PublicOutput(NamedTuple):
    """What a training step computes.

    Attributes:
        recon: The dVAE's reconstruction, clamped to [0, 1], ``[B, C, S, S]``.
        cross_entropy: Nats, summed over an image's tokens, mean over the batch; scalar.
        mse: Squared error of the dVAE, summed over an image's values, mean over the batch; scalar.
        attn: Attention of every token over the slots, ``[B, N, K]``.
    """

    recon: Tensor
    cross_entropy: Tensor
    mse: Tensor
    attn: Tensor


class PublicSLATE(nn.Module):
    """The public code's model, but for its eval mode, which draws no Gumbel noise here.

    Args:
        config: The settings. Gradients are unrolled, initial slots Gaussian, tokens drawn, and positions
            begin each on its own, whatever it says.

    Raises:
        ValueError: If it whitens colours, which are others than the public code's.

    Source:
        Singh et al. 2022, "Illiterate DALL-E Learns to Compose" (SLATE), and its public code.
    """

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        if config.whiten:
            raise ValueError("whiten must be False for the public code's form; got True")
        length, d_model = config.num_tokens, config.d_model
        self.vocab_size = config.vocab_size
        self.dvae = PublicDVAE(config)
        self.positional_encoder = Positions(1 + length, d_model, config.dropout)
        self.slot_attn = PublicSlotEncoder(config)
        self.dictionary = OneHotDictionary(1 + config.vocab_size, d_model)
        self.slot_proj = linear(config.slot_size, d_model, bias=False)
        self.tf_dec = PublicDecoder(config)
        self.out = linear(d_model, config.vocab_size, bias=False)

    def forward(
        self,
        image: Tensor,
        tau: float | Tensor = 1.0,
        hard: bool = False,
        slots: Tensor | None = None,
    ) -> PublicOutput:
        """Computes both losses of a batch.

        Args:
            image: Images in [0, 1], ``[B, C, S, S]``.
            tau: Temperature of the dVAE's relaxed tokens.
            hard: Decodes one-hot tokens, with the gradient of the relaxed ones.
            slots: The initial guess, ``[B, K, slot_size]``. Default: a fresh draw.
        """
        log_probs = F.log_softmax(self.dvae.encoder(image), dim=1)
        recon = self.dvae.decoder(gumbel_softmax(log_probs, tau, hard, self.training))
        mse = ((image - recon) ** 2).sum() / len(image)
        target = gumbel_softmax(log_probs, tau, True, self.training).detach()
        target = target.flatten(2).transpose(1, 2)
        embeddings = self.positional_encoder(self.dictionary(behind_bos(target)))
        final_slots, attn = self.slot_attn(embeddings[:, 1:], slots)
        log_prediction = torch.log_softmax(self.predict(embeddings[:, :-1], final_slots), dim=-1)
        cross_entropy = -(target * log_prediction).sum(dim=(1, 2)).mean()
        return PublicOutput(recon.clamp(0, 1), cross_entropy, mse, attn)

    def predict(self, embeddings: Tensor, slots: Tensor) -> Tensor:
        """Logits of the next token, ``[B, L, V]``, for ``[B, L, d_model]`` and final slots."""
        logits: Tensor = self.out(self.tf_dec(embeddings, self.slot_proj(slots)))
        return logits

    def tokenize(self, image: Tensor) -> Tensor:
        """Greedy tokens, one-hot, ``[B, N, V]``."""
        greedy = self.dvae.encoder(image).argmax(dim=1).flatten(1)
        return F.one_hot(greedy, self.vocab_size).to(image.dtype)

    def encode(self, tokens: Tensor, slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Final slots and attention of one-hot tokens ``[B, N, V]``."""
        embeddings = self.positional_encoder(self.dictionary(behind_bos(tokens)))
        final_slots, attn = self.slot_attn(embeddings[:, 1:], slots)
        return final_slots, attn

    @torch.no_grad()
    def generate(self, slots: Tensor, num_tokens: int) -> Tensor:
        """Greedy tokens, one-hot, ``[B, N, V]``; every step runs the decoder on the whole prefix."""
        tokens = slots.new_zeros(len(slots), 0, self.vocab_size)
        for _ in range(num_tokens):
            embeddings = self.positional_encoder(self.dictionary(behind_bos(tokens)))
            best = self.predict(embeddings, slots)[:, -1:].argmax(dim=-1)
            tokens = torch.cat([tokens, F.one_hot(best, self.vocab_size).to(tokens)], dim=1)
        return tokens

    def decode(self, tokens: Tensor) -> Tensor:
        """Images ``[B, C, S, S]``, not clamped, of one-hot tokens ``[B, N, V]``."""
        side = int(tokens.shape[1] ** 0.5)
        image: Tensor = self.dvae.decoder(
            tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        )
        return image

    @torch.no_grad()
    def reconstruct(self, image: Tensor, slots: Tensor | None = None) -> Tensor:
        """Passes images through the slots; clamped to [0, 1]."""
        tokens = self.tokenize(image)
        final_slots, _ = self.encode(tokens, slots)
        return self.decode(self.generate(final_slots, tokens.shape[1])).clamp(0, 1)


def behind_bos(tokens: Tensor) -> Tensor:
    """One-hot tokens ``[B, L, V]`` to ``[B, 1 + L, 1 + V]``, where class 0 begins the sequence."""
    widened = F.pad(tokens, (1, 0, 1, 0))
    widened[:, 0, 0] = 1.0
    return widened


def gumbel_softmax(log_probs: Tensor, tau: float | Tensor, hard: bool, noisy: bool) -> Tensor:
    """Relaxed one-hot tokens in the shape of ``log_probs``, classes in dimension 1.

    Args:
        log_probs: Log-probabilities, ``[B, V, h, w]``.
        tau: Temperature.
        hard: Makes them one-hot, with the gradient of the relaxed ones.
        noisy: Adds Gumbel noise.
    """
    perturbed = log_probs
    if noisy:
        tiny = torch.finfo(log_probs.dtype).tiny
        perturbed = log_probs - (torch.empty_like(log_probs).exponential_() + tiny).log()
    soft = F.softmax(perturbed / tau, dim=1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


class PublicDVAE(nn.Module):
    """The discrete VAE: its encoder to token logits, and its decoder of token weights.

    Args:
        config: The settings.
    """

    def __init__(self, config: SLATEConfig) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            ConvBlock(config.image_channels, 64, 4, stride=4),
            *[ConvBlock(64, 64) for _ in range(6)],
            _conv(64, config.vocab_size),
        )
        self.decoder = nn.Sequential(
            ConvBlock(config.vocab_size, 64),
            *_double_side(),
            *_double_side(),
            _conv(64, config.image_channels),
        )


class ConvBlock(nn.Module):
    """Convolution without bias, one-group normalisation with scale and shift, ReLU."""

    def __init__(self, c_in: int, c_out: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.m = nn.Conv2d(c_in, c_out, size, stride, size // 2 if stride == 1 else 0, bias=False)
        nn.init.kaiming_uniform_(self.m.weight, nonlinearity="relu")
        self.weight = nn.Parameter(torch.ones(c_out))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, c_in, h, w]`` to ``c_out`` channels."""
        return F.relu(F.group_norm(self.m(x), 1, self.weight, self.bias))


class OneHotDictionary(nn.Module):
    """Embeds one-hot tokens."""

    def __init__(self, classes: int, d_model: int) -> None:
        super().__init__()
        self.dictionary = nn.Embedding(classes, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeds ``[B, L, classes]`` to ``[B, L, d_model]``."""
        embeddings: Tensor = self.dictionary(tokens.argmax(dim=-1))
        return embeddings


class Positions(nn.Module):
    """Adds learned positions, then drops out."""

    def __init__(self, length: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, length, d_model)))

    def forward(self, x: Tensor) -> Tensor:
        """Places ``[B, L, d_model]`` at the first L positions."""
        output: Tensor = self.dropout(x + self.pe[:, : x.shape[1]])
        return output


def _double_side() -> list[nn.Module]:
    convs = [ConvBlock(64, 64, 3), ConvBlock(64, 64), ConvBlock(64, 64), ConvBlock(64, 256)]
    return [*convs, nn.PixelShuffle(2)]


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, 1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv
