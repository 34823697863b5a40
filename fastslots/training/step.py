"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fastslots.models.recipe import Recipe
from fastslots.models.trainable import Trainable
from fastslots.noise import sample_keys
from fastslots.training.batches import BatchParts
from fastslots.training.optimizers import Optimizers
from fastslots.training.rehearsal import check_gradients, check_groups, check_rates
from fastslots.training.validation import check_numbers

if TYPE_CHECKING:
    from accelerate import Accelerator


class DivergedError(RuntimeError):
    """A loss, a gradient or a weight that is no finite number ended the run; the message names it."""


class _Losses(nn.Module):
    """The losses alone: Accelerate changes the forward of what it prepares, and it is compiled."""

    def __init__(self, trainable: Trainable) -> None:
        super().__init__()
        self.trainable = trainable

    def forward(self, image: Tensor, keys: Tensor, **schedule: Tensor) -> tuple[Tensor, ...]:
        losses: tuple[Tensor, ...] = self.trainable(image, keys, **schedule)
        return losses


class TrainingStep:
    """Losses, gradients, clipping, and what changes the weights.

    A group whose rate is 0 rests: it gets no gradients, which are not computed where they need not be, and
    what the optimisers keep of it stays as it is.

    Args:
        trainable: On the accelerator's device.
        recipe: The numbers.
        accelerator: Spreads the step over processes, and chooses its precision.
        parts: This process's part of a batch.

    Attributes:
        groups: The parameters that learn, by what shares a learning rate.
        rates: The learning rate of each group at the last step, Adam's.
        optimizers: With these groups.
        columns: What a step has to say for the log: its losses, and the norm of each group's gradient before
            clipping.
    """

    def __init__(
        self, trainable: Trainable, recipe: Recipe, accelerator: Accelerator, parts: BatchParts
    ) -> None:
        self.trainable, self.recipe = trainable, recipe
        self.accelerator, self.parts = accelerator, parts
        self.groups = {name: list(group) for name, group in trainable.groups().items()}
        check_groups(self.groups, trainable)
        check_rates(recipe.rates(0), self.groups, 0)
        norms = (f"{recipe.norm_name}_{name}" for name in self.groups)
        self.columns = [*trainable.losses, *norms]
        self.rates: dict[str, float] = {}
        losses: nn.Module = _Losses(trainable)
        if recipe.compile:
            losses = _compiled(losses, accelerator, recipe)
        self.losses = accelerator.prepare(losses)
        # Rows of an embedding are vectors that stand for themselves: Muon would make them orthogonal.
        tables = [m.weight for m in trainable.modules() if isinstance(m, nn.Embedding)]
        self.optimizers = Optimizers(self.groups, recipe.muon, tables)
        self._checked: set[str] = set()  # groups whose parameters have had their first gradients
        self.optimizers.prepare(accelerator)

    def keys(self, step: int) -> list[Tensor]:
        """The keys of the noise of each micro-batch, ``[B, 2]`` int32 on the device."""
        return [self._on_device(sample_keys(p, self.recipe.seed, "step", step)) for p in self.parts]

    def __call__(self, step: int, batches: Sequence[Tensor], factor: float) -> Tensor:
        """One step.

        Args:
            step: Its number, from 0.
            batches: This process's micro-batches, ``[B, C, S, S]`` each.
            factor: Multiplies all learning rates.

        Returns:
            `columns` as a tensor on the device, means over the images of this process: reading it would wait
            for the step.

        Raises:
            DivergedError: On a CPU, if one of them is not finite; the weights are as before the step.
        """
        rates = self.recipe.rates(step)
        check_rates(rates, self.groups, step)
        self.rates = {name: rate * factor for name, rate in rates.items()}
        self.optimizers.set_rates(self.rates)
        self.trainable.model.train()
        self.optimizers.zero_grad()
        schedule = {
            name: torch.full((), value, dtype=torch.float32, device=batches[0].device)
            for name, value in self.recipe.schedule(step).items()
        }
        resting = [p for name, rate in rates.items() if rate == 0 for p in self.groups[name]]
        losses = []
        with self._frozen(resting if any(rates.values()) else []):
            for index, (image, keys) in enumerate(zip(batches, self.keys(step), strict=True), 1):
                # Processes share their gradients after the last one alone.
                apart = index < len(batches)
                with self.accelerator.no_sync(self.losses) if apart else nullcontext():
                    if self.recipe.compile:
                        torch.compiler.cudagraph_mark_step_begin()
                    each = torch.stack(self.losses(image, keys, **schedule))
                    check_numbers("forward", each, self.trainable.losses)
                    torch.autograd.backward(each.sum() / len(batches))
                losses.append(each.detach())
        for parameter in resting:
            parameter.grad = None
        learning = {name for name, rate in rates.items() if rate > 0}
        if not learning <= self._checked:
            check_gradients(self.trainable.model, resting)
            self._checked |= learning
        norms = torch.stack([self._norm(group) for group in self.groups.values()])
        values = torch.cat((torch.stack(losses).mean(0), norms))
        if values.device.type == "cpu":
            check_finite([values.tolist()], self.columns, step + 1)
        self._clip(torch.linalg.vector_norm(norms, self.recipe.norm))
        self.optimizers.step()
        return values

    @contextmanager
    def _frozen(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Computes no gradients of some parameters, unless DDP awaits them or a graph was made with them."""
        alone = self.accelerator.num_processes == 1 and not self.recipe.compile
        frozen = parameters if alone else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _norm(self, parameters: list[nn.Parameter]) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), dtype=parameters[0].dtype, device=parameters[0].device)
        return torch.nn.utils.get_total_norm(gradients, norm_type=self.recipe.norm)

    def _clip(self, norm: Tensor) -> None:
        if math.isfinite(self.recipe.clip):
            parameters = [p for group in self.groups.values() for p in group]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip, norm)

    def _on_device(self, keys: Tensor) -> Tensor:
        """A copy that nothing waits for."""
        device = self.accelerator.device
        return keys.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else keys


def check_finite(
    values: Sequence[Sequence[float]], columns: Sequence[str], first_step: int
) -> None:
    """Raises if a step's loss or gradient is no finite number.

    Args:
        values: What successive steps had to say.
        columns: What each number is.
        first_step: Number of the first, from 1.

    Raises:
        DivergedError: Naming the first such step and its values.
    """
    for step, row in enumerate(values, first_step):
        if not all(map(math.isfinite, row)):
            named = ", ".join(f"{name} {value:g}" for name, value in zip(columns, row, strict=True))
            raise DivergedError(f"step {step} has a loss or gradient that is not finite: {named}")


def _compiled(losses: nn.Module, accelerator: Accelerator, recipe: Recipe) -> nn.Module:
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
