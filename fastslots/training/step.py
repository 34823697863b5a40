"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastslots.models.slate import SLATE
from fastslots.noise import sample_keys
from fastslots.training.batches import BatchParts
from fastslots.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


class StepValues(NamedTuple):
    """What a step has to say for the log; means over the images of this process.

    Attributes:
        cross_entropy: Nats per image.
        mse: Squared error per image.
        gradient_linf_norm_dvae: The largest entry of the dVAE's gradient, before clipping.
        gradient_linf_norm_main: The same of everything else.
    """

    cross_entropy: float
    mse: float
    gradient_linf_norm_dvae: float
    gradient_linf_norm_main: float


class DivergedError(RuntimeError):
    """A loss, a gradient or a weight that is no finite number ended the run; the message names it."""


class Losses(nn.Module):
    """The two losses of SLATE and nothing else, so that a compiled step computes nothing else.

    Args:
        model: The model.
    """

    def __init__(self, model: SLATE) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, tau: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and squared error, means over the batch ``[B, 3, S, S]``."""
        out = self.model(image, tau, keys=keys)
        return out.cross_entropy, out.mse


class TrainingStep:
    """Losses, gradients, clipping, Adam.

    Args:
        model: On the accelerator's device.
        recipe: The numbers.
        accelerator: Spreads the step over processes, and chooses its precision.
        parts: This process's part of a batch.

    Attributes:
        optimizer: With two groups of parameters, the dVAE's and the others.
    """

    def __init__(
        self, model: SLATE, recipe: Recipe, accelerator: Accelerator, parts: BatchParts
    ) -> None:
        self.model, self.recipe, self.accelerator, self.parts = model, recipe, accelerator, parts
        dvae = {id(p) for p in model.dvae.parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        self.groups = [
            [p for p in trained if id(p) in dvae],
            [p for p in trained if id(p) not in dvae],
        ]
        self.optimizer = torch.optim.Adam([{"params": group} for group in self.groups], fused=True)
        losses: nn.Module = Losses(model)
        if recipe.compile:
            losses = _compiled(losses, recipe, accelerator)
        self.losses, self.prepared = accelerator.prepare(losses, self.optimizer)

    def keys(self, step: int) -> list[Tensor]:
        """The keys of the noise of each micro-batch, ``[B, 2]`` int32 on the device."""
        return [self._on_device(sample_keys(p, self.recipe.seed, "step", step)) for p in self.parts]

    def __call__(self, step: int, batches: Sequence[Tensor], factor: float) -> Tensor:
        """One step.

        Args:
            step: Its number, from 0.
            batches: This process's micro-batches, ``[B, 3, S, S]`` each.
            factor: Multiplies both learning rates.

        Returns:
            `StepValues` as a tensor ``[4]`` on the device: reading it would wait for the step.

        Raises:
            DivergedError: On a CPU, if one of them is not finite; the weights are as before the step.
        """
        self._set_learning_rates(step, factor)
        self.model.train()
        self.prepared.zero_grad()
        tau = torch.full((), self.recipe.tau(step), dtype=torch.float32, device=batches[0].device)
        losses = []
        for index, (image, keys) in enumerate(zip(batches, self.keys(step), strict=True), 1):
            apart = index < len(batches)  # processes share their gradients after the last one alone
            with self.accelerator.no_sync(self.losses) if apart else nullcontext():
                if self.recipe.compile:
                    torch.compiler.cudagraph_mark_step_begin()
                both = torch.stack(self.losses(image, tau, keys))
                torch.autograd.backward(both.sum() / len(batches))
            losses.append(both.detach())
        norms = torch.stack([_linf_norm(group) for group in self.groups])
        values = torch.cat((torch.stack(losses).mean(0), norms))
        if values.device.type == "cpu":
            check_finite([values.tolist()], step + 1)
        self._clip(norms.max())
        self.prepared.step()
        return values

    def _set_learning_rates(self, step: int, factor: float) -> None:
        dvae, main = self.optimizer.param_groups
        dvae["lr"] = self.recipe.lr_dvae * factor
        main["lr"] = self.recipe.lr_main * factor * self.recipe.warmup(step)

    def _clip(self, norm: Tensor) -> None:
        if math.isfinite(self.recipe.clip):
            parameters = [p for group in self.groups for p in group]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip, norm)

    def _on_device(self, keys: Tensor) -> Tensor:
        """A copy that nothing waits for."""
        device = self.accelerator.device
        return keys.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else keys


def check_finite(values: Sequence[Sequence[float]], first_step: int) -> None:
    """Raises if a step's loss or gradient is no finite number.

    Args:
        values: `StepValues` of successive steps.
        first_step: Number of the first, from 1.

    Raises:
        DivergedError: Naming the first such step and its values.
    """
    for step, row in enumerate(values, first_step):
        if not all(map(math.isfinite, row)):
            named = ", ".join(
                f"{name} {value:g}" for name, value in zip(StepValues._fields, row, strict=True)
            )
            raise DivergedError(f"step {step} has a loss or gradient that is not finite: {named}")


def _compiled(losses: nn.Module, recipe: Recipe, accelerator: Accelerator) -> nn.Module:
    # A CUDA graph's gradients lie where its next run writes: nothing may still need them then.
    graphs = (
        accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and recipe.accumulation == 1
    )
    if accelerator.num_processes > 1:
        # Else the compiler would cut the step where buckets of gradients end.
        torch._dynamo.config.optimize_ddp = False
    mode = "reduce-overhead" if graphs else "default"
    return cast(nn.Module, torch.compile(losses, fullgraph=True, dynamic=False, mode=mode))


def _linf_norm(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
