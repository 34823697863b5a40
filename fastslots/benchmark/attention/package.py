"""The package `slot-attention` of PyPI, if it is installed."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

PACKAGE = "slot-attention"


def import_package() -> Any:
    """Its module class.

    Raises:
        ImportError: If it, or something it needs, is not installed.
    """
    try:
        return importlib.import_module("slot_attention").SlotAttention
    except ImportError as error:
        raise ImportError(
            f"{PACKAGE} cannot be imported ({error}): pip install {PACKAGE} brings it"
        ) from error


class PackageModel:
    """Its module on some inputs. It draws weights and initial slots of its own, and has no attention.

    Args:
        inputs: ``[B, N, C]``.
        slots: For their shape alone, ``[B, K, D]``.
        mlp_hidden_size: Of the MLP.
        num_heads: Must be 1.
        iterations: T.

    Raises:
        ImportError: If the package is missing.
        ValueError: If it has no model of these sizes.
    """

    def __init__(
        self, inputs: Tensor, slots: Tensor, mlp_hidden_size: int, num_heads: int, iterations: int
    ) -> None:
        width = slots.shape[2]
        if inputs.shape[2] != width or mlp_hidden_size < width or num_heads != 1:
            raise ValueError(
                f"{PACKAGE} needs inputs and slots of one width, an MLP at least as wide, and one head; "
                f"got widths {inputs.shape[2]}, {width} and {mlp_hidden_size}, {num_heads} heads"
            )
        module = import_package()(slots.shape[1], width, iterations, hidden_dim=mlp_hidden_size)
        self.module = module.to(inputs)
        self.inputs = inputs
        self.used = torch.tensor(iterations)

    @property
    def leaves(self) -> list[Tensor]:
        """Inputs and weights."""
        return [self.inputs, *self.module.parameters()]

    def __call__(self) -> tuple[Tensor, None, Tensor]:
        """Slots, no attention, the number of iterations."""
        return self.module(self.inputs), None, self.used
