"""What SLATE gives back."""

from typing import NamedTuple

from torch import Tensor


class SLATEOutput(NamedTuple):
    """What a training step computes.

    Attributes:
        cross_entropy: Nats, summed over an image's tokens, mean over the batch; scalar.
        mse: Squared error of the dVAE, of colours as it sees them, summed over an image's values, mean over
            the batch; scalar.
        recon: The dVAE's reconstruction, clamped to [0, 1], ``[B, C, S, S]``.
        attn: Attention of every token over the slots, ``[B, N, K]``.
        ids: The tokens that slots and transformer saw, ``[B, N]`` int64.
        slots: The final slots, ``[B, K, slot_size]``.
    """

    cross_entropy: Tensor
    mse: Tensor
    recon: Tensor
    attn: Tensor
    ids: Tensor
    slots: Tensor


class SLATELook(NamedTuple):
    """What SLATE makes of a batch of images.

    Attributes:
        ids: The greedy tokens, ``[B, N]`` int64.
        slots: The final slots, ``[B, K, slot_size]``.
        attn: Attention of every token over the slots, ``[B, N, K]``.
        recon: The dVAE's reconstruction from the tokens, not clamped, ``[B, C, S, S]``.
        through_slots: The reconstruction from tokens that were generated from the slots, clamped to [0, 1].
    """

    ids: Tensor
    slots: Tensor
    attn: Tensor
    recon: Tensor
    through_slots: Tensor
