"""What a slot autoencoder gives back."""

from typing import NamedTuple

from torch import Tensor


class SlotAutoencoderOutput(NamedTuple):
    """What a training step computes.

    Attributes:
        loss: Squared error of the reconstruction, mean over values and batch, of colours scaled to [-1, 1] or
            whitened; scalar.
        recon: The reconstruction, clamped to [0, 1], ``[B, C, S, S]``.
        masks: The decoder's masks, a softmax over slots, ``[B, K, S, S]``.
        attn: Attention of every input over the slots, ``[B, N, K]``.
        slots: The final slots, ``[B, K, slot_size]``.
    """

    loss: Tensor
    recon: Tensor
    masks: Tensor
    attn: Tensor
    slots: Tensor


class SlotAutoencoderLook(NamedTuple):
    """What a slot autoencoder makes of a batch of images.

    Attributes:
        recon: The reconstruction, clamped to [0, 1], ``[B, C, S, S]``.
        masks: The decoder's masks, a softmax over slots, ``[B, K, S, S]``.
        slot_images: What each slot would show alone, clamped to [0, 1], ``[B, K, C, S, S]``.
        attn: Attention of every input over the slots, ``[B, N, K]``.
        slots: The final slots, ``[B, K, slot_size]``.
    """

    recon: Tensor
    masks: Tensor
    slot_images: Tensor
    attn: Tensor
    slots: Tensor
