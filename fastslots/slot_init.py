"""The initial guess of slot attention."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from fastslots.noise import Noise
from fastslots_kernels.checks import check_choice, check_count

KINDS = ("gaussian", "learned")
_log = logging.getLogger("fastslots")


class SlotInit(nn.Module):
    """Draws the initial slots.

    Args:
        num_slots: The usual number of slots.
        slot_size: Width of the slots, D.
        kind: ``"gaussian"``: slots drawn from one learned Gaussian, whose mean `slot_mu` and log standard
            deviation `slot_log_sigma`, ``[1, 1, D]``, all slots share (Locatello et al. 2020, SLATE).
            ``"learned"``: one learned query per slot, `slot_queries` ``[1, num_slots, D]`` (BO-QSA).

    Raises:
        ValueError: If `kind` is neither, or a size is not positive.
        TypeError: If a size is no int.
    """

    def __init__(self, num_slots: int, slot_size: int, kind: str = "gaussian") -> None:
        super().__init__()
        self.kind = check_choice("kind", kind, KINDS)
        self.num_slots = num_slots = check_count("num_slots", num_slots, 1)
        self.slot_size = slot_size = check_count("slot_size", slot_size, 1)
        if kind == "gaussian":
            self.slot_mu = nn.Parameter(torch.empty(1, 1, slot_size))
            self.slot_log_sigma = nn.Parameter(torch.empty(1, 1, slot_size))
        else:
            self.slot_queries = nn.Parameter(torch.empty(1, num_slots, slot_size))
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        batch_size: int,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Initial slots, ``[batch_size, num_slots, slot_size]``, in the parameters' dtype and device.

        Args:
            batch_size: B, at least 0.
            num_slots: Default: the module's. Learned queries exist for that number alone.
            generator: Source of the noise, on the parameters' device. Default: the global one.
            noise: Source of the noise in place of a generator, with a key for each sample.

        Raises:
            ValueError: If a number breaks its rule.
            TypeError: If a number is no int.
        """
        num_slots = self.num_slots if num_slots is None else num_slots
        batch_size = check_count("batch_size", batch_size, 0)
        num_slots = check_count("num_slots", num_slots, 1)
        if self.kind == "learned":
            if num_slots != self.num_slots:
                raise ValueError(
                    f"num_slots must be {self.num_slots}, the number of learned queries; got {num_slots}"
                )
            return self.slot_queries.repeat(batch_size, 1, 1)
        if noise is not None:
            if noise.keys.shape[0] != batch_size:
                raise ValueError(
                    f"noise must have a key for each of the {batch_size} samples; got {noise.keys.shape[0]}"
                )
            drawn = noise.normal(num_slots, self.slot_size, self.slot_mu.dtype)
        else:
            # As `torch.randn` does, which cannot be exported with a generator, not even None.
            shape = (batch_size, num_slots, self.slot_size)
            drawn = self.slot_mu.new_empty(shape).normal_(generator=generator)
        return self.slot_mu + self.slot_log_sigma.exp() * drawn

    def freeze(self) -> None:
        """Stops the parameters from learning, and says so once per process.

        For models in which no gradient reaches the initial slots: an implicit gradient without
        ``init_gradient="straight-through"``. Unfrozen, they would only confuse optimisers and DDP.
        """
        self.requires_grad_(False)
        _say_frozen(self.kind)

    def extra_repr(self) -> str:
        """The sizes, for ``print(module)``."""
        return f"{self.num_slots}, {self.slot_size}, kind={self.kind!r}"


@functools.cache
def _say_frozen(kind: str) -> None:
    _log.warning(
        "the %s initial slots are frozen at their initial values: an implicit gradient does not reach "
        'them (init_gradient="straight-through" or gradient="unrolled" would)',
        kind,
    )
