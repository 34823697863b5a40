"""Checks of the tokens that users hand to SLATE, and of the logits that lead to them."""

import torch
from torch import Tensor

from fastslots.models.checks import NotFiniteError, check_device, may_look
from fastslots.models.slate.config import SLATEConfig
from fastslots_kernels.checks import check_tensor


def check_ids(ids: Tensor, config: SLATEConfig, device: torch.device) -> None:
    """Raises unless ``ids`` are a batch of ``config``'s tokens on ``device``, which it waits for."""
    check_tensor("ids", ids)
    if ids.ndim != 2 or ids.shape[1] != config.num_tokens:
        raise ValueError(f"ids must have shape (B, {config.num_tokens}); got {tuple(ids.shape)}")
    if ids.dtype != torch.int64:
        raise TypeError(f"ids must be torch.int64; got {ids.dtype}")
    check_device("ids", ids, device)
    if may_look(ids) and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"ids must lie in [0, vocab_size={config.vocab_size}); got {low} to {high}"
            )


class NoTokensError(NotFiniteError):
    """Logits of tokens are NaN."""


def check_no_nan(name: str, logits: Tensor) -> None:
    """Raises if the greatest logits ``[B, N]`` of tokens hold NaN, which is no token; waits for the device.

    Args:
        name: What they follow from, besides the weights.
        logits: NaN where any of those of a token are.
    """
    if not may_look(logits):
        return
    broken = logits.isnan().any(1)
    if broken.any():
        number = int(broken.nonzero()[0])
        message = (
            f"{name} must lead to tokens; got NaN for number {number} of the batch: it or the weights "
            "hold no finite numbers, or a sum overflowed (float16 ends at 65504)"
        )
        raise NoTokensError(message, number)
