"""Checks of the tensors that users hand to a model."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslots.models.slot_config import SlotConfig
from fastslots.noise import Noise, fresh_keys
from fastslots_kernels.autocast import autocast_dtype
from fastslots_kernels.checks import check_tensor
from fastslots_kernels.derivatives import transforms_active


class NotFiniteError(ValueError):
    """What a model goes on from is NaN for an image.

    Args:
        message: What to say.
        number: Which image of the batch is the first of these.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def check_image(
    image: Tensor, config: SlotConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Raises unless ``image`` is a batch of ``config``'s images in ``dtype`` on ``device``."""
    check_tensor("image", image)
    if image.ndim != 4 or image.shape[1:] != config.image_shape:
        expected = ", ".join(map(str, config.image_shape))
        raise ValueError(f"image must have shape (B, {expected}); got {tuple(image.shape)}")
    _check_dtype("image", image, dtype)
    check_device("image", image, device)


def check_not_empty(name: str, batch: Tensor) -> None:
    """Raises if a batch is empty, whose mean loss is no number."""
    if batch.shape[0] == 0:
        raise ValueError(f"{name} must hold at least one image, whose losses are averaged; got 0")


def check_slots(
    slots: Tensor,
    config: SlotConfig,
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
    check_device("slots", slots, device)


def check_keys(keys: Tensor, batch_size: int, device: torch.device) -> None:
    """Raises unless ``keys`` are one noise key per image, on ``device``."""
    check_tensor("keys", keys)
    if keys.dtype != torch.int32:
        raise TypeError(f"keys must be torch.int32; got {keys.dtype}")
    if keys.shape != (batch_size, 2):
        raise ValueError(f"keys must have shape ({batch_size}, 2); got {tuple(keys.shape)}")
    check_device("keys", keys, device)


def noise_of(keys: Tensor | None, batch_size: int, device: torch.device) -> Noise:
    """The noise of a batch: from its keys, or from fresh ones.

    Raises:
        ValueError: If the keys are not one per image, or on another device.
        TypeError: If their dtype is another.
    """
    if keys is None:
        return Noise(fresh_keys(batch_size, device))
    check_keys(keys, batch_size, device)
    return Noise(keys)


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    """Raises unless a tensor is on the device of the parameters."""
    if value.device != device:
        raise ValueError(
            f"{name} must be on the device of the parameters, {device}; got {value.device}"
        )


def may_look(value: Tensor) -> bool:
    """Whether there are values to look at."""
    return not (torch.compiler.is_compiling() or value.is_meta or transforms_active())


def check_num_slots(saved: SlotConfig, changed: SlotConfig) -> None:
    """Raises if a model that was saved with one number of learned queries is to have another."""
    learned = saved.slot_init == changed.slot_init == "learned"
    if learned and changed.num_slots != saved.num_slots:
        raise ValueError(
            f"num_slots must be {saved.num_slots}, the number of learned queries; got {changed.num_slots}: "
            "leave it out, or train a model with slot_init='gaussian', whose slots may be any number"
        )


def _check_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype and not _is_cast(value):
        raise TypeError(f"{name} must be {dtype} like the parameters; got {value.dtype}")


def _is_cast(value: Tensor) -> bool:
    """Whether autocast brings ``value`` to a dtype of its own choice."""
    casts = value.is_floating_point() and value.dtype != torch.float64
    return casts and autocast_dtype(value.device) is not None
