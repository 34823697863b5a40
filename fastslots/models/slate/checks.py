"""Checks of the tensors that users hand to SLATE."""

import torch
from torch import Tensor

from fastslots.models.slate.config import SLATEConfig
from fastslots_kernels.autocast import autocast_dtype
from fastslots_kernels.checks import check_tensor
from fastslots_kernels.derivatives import transforms_active


def check_image(
    image: Tensor, config: SLATEConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Raises unless ``image`` is a batch of ``config``'s images in ``dtype`` on ``device``."""
    check_tensor("image", image)
    if image.ndim != 4 or image.shape[1:] != config.image_shape:
        expected = ", ".join(map(str, config.image_shape))
        raise ValueError(f"image must have shape (B, {expected}); got {tuple(image.shape)}")
    _check_dtype("image", image, dtype)
    _check_device("image", image, device)


def check_not_empty(name: str, batch: Tensor) -> None:
    """Raises if a batch is empty, whose mean loss is no number."""
    if batch.shape[0] == 0:
        raise ValueError(f"{name} must hold at least one image, whose losses are averaged; got 0")


def check_ids(ids: Tensor, config: SLATEConfig, device: torch.device) -> None:
    """Raises unless ``ids`` are a batch of ``config``'s tokens on ``device``, which it waits for."""
    check_tensor("ids", ids)
    if ids.ndim != 2 or ids.shape[1] != config.num_tokens:
        raise ValueError(f"ids must have shape (B, {config.num_tokens}); got {tuple(ids.shape)}")
    if ids.dtype != torch.int64:
        raise TypeError(f"ids must be torch.int64; got {ids.dtype}")
    _check_device("ids", ids, device)
    if _may_look(ids) and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"ids must lie in [0, vocab_size={config.vocab_size}); got {low} to {high}"
            )


def check_slots(
    slots: Tensor,
    config: SLATEConfig,
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int | None = None,
) -> None:
    """Raises unless ``slots`` are one or more per image, of ``config``'s size, in ``dtype`` on ``device``."""
    check_tensor("slots", slots)
    is_batch = slots.ndim == 3 and batch_size in (None, slots.shape[0])
    if not is_batch or slots.shape[1] < 1 or slots.shape[2] != config.slot_size:
        batch = "B" if batch_size is None else batch_size
        raise ValueError(
            f"slots must have shape ({batch}, K, {config.slot_size}) with K at least 1; "
            f"got {tuple(slots.shape)}"
        )
    _check_dtype("slots", slots, dtype)
    _check_device("slots", slots, device)


def check_keys(keys: Tensor, batch_size: int, device: torch.device) -> None:
    """Raises unless ``keys`` are one noise key per image, on ``device``."""
    check_tensor("keys", keys)
    if keys.dtype != torch.int32:
        raise TypeError(f"keys must be torch.int32; got {keys.dtype}")
    if keys.shape != (batch_size, 2):
        raise ValueError(f"keys must have shape ({batch_size}, 2); got {tuple(keys.shape)}")
    _check_device("keys", keys, device)


class NoTokensError(ValueError):
    """Logits of tokens are NaN.

    Args:
        message: What to say.
        number: Which image of the batch has the first of them.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def check_no_nan(name: str, logits: Tensor) -> None:
    """Raises if the greatest logits ``[B, N]`` of tokens hold NaN, which is no token; waits for the device.

    Args:
        name: What they follow from, besides the weights.
        logits: NaN where any of those of a token are.
    """
    if not _may_look(logits):
        return
    broken = logits.isnan().any(1)
    if broken.any():
        number = int(broken.nonzero()[0])
        message = (
            f"{name} must lead to tokens; got NaN for number {number} of the batch: it or the weights "
            "hold no finite numbers, or a sum overflowed (float16 ends at 65504)"
        )
        raise NoTokensError(message, number)


def _may_look(value: Tensor) -> bool:
    """Whether there are values to look at."""
    return not (torch.compiler.is_compiling() or value.is_meta or transforms_active())


def _check_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(
            f"{name} must be on the device of the parameters, {device}; got {value.device}"
        )


def _check_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype and not _is_cast(value):
        raise TypeError(f"{name} must be {dtype} like the parameters; got {value.dtype}")


def _is_cast(value: Tensor) -> bool:
    """Whether autocast brings ``value`` to a dtype of its own choice."""
    casts = value.is_floating_point() and value.dtype != torch.float64
    return casts and autocast_dtype(value.device) is not None
