"""One of the models under comparison: its steps, each a replay of one CUDA graph where there is CUDA."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastslots.benchmark.measure.graphs import capture
from fastslots.comparison.memory import SceneMemory
from fastslots.comparison.settings import Settings
from fastslots.models.slate import SLATE, SLATEConfig, TrainableSLATE
from fastslots.noise import derive_seed, sample_keys

MODULES = ("dvae", "slot_attn", "decoder")
COLUMNS = ("cross_entropy", "mse", *(f"gradient_norm_{name}" for name in MODULES), "gradient_linf")


class Plan(NamedTuple):
    """Everything that some steps are given, a row per step, on the device.

    Attributes:
        indices: Of the images, ``[steps, B]`` int64.
        keys: Of the noise, ``[steps, B, 2]`` int32.
        numbers: tau and both learning rates, ``[steps, 3]`` float32.
    """

    indices: Tensor
    keys: Tensor
    numbers: Tensor

    @classmethod
    def of(
        cls, settings: Settings, num_images: int, steps: range, total: int, device: torch.device
    ) -> Plan:
        """The plan of some of `total` steps: images drawn with replacement, by seed and step alone."""
        size = settings.batch_size
        indices, keys, numbers = [], [], []
        for step in steps:
            generator = torch.Generator().manual_seed(derive_seed(settings.seed, "images", step))
            indices.append(torch.randint(num_images, (size,), generator=generator))
            keys.append(sample_keys(range(size), settings.seed, "step", step))
            factor, tau = settings.schedule(step, total)
            numbers.append((tau, settings.lr_dvae * factor, settings.lr_main * factor))
        return cls(
            torch.stack(indices).to(device),
            torch.stack(keys).to(device),
            torch.tensor(numbers, dtype=torch.float32).to(device),
        )


class Arm:
    """A model in training.

    Args:
        config: Of the model; initial weights follow from the seed.
        settings: The recipe.
        images: What to train on, on the device.
        device: Where.

    Attributes:
        model: The model.
        graph: The whole step, captured by `capture`; None: steps run eagerly.
    """

    def __init__(
        self, config: SLATEConfig, settings: Settings, images: SceneMemory, device: torch.device
    ) -> None:
        self.settings, self.images, self.device = settings, images, device
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        self.model = SLATE(config).to(device).train()
        self.initial = self.snapshot()
        self.losses = TrainableSLATE(self.model)
        dvae, main = self.losses.groups().values()
        self.parameters = [*dvae, *main]
        of_slots = {id(p) for p in self.model.slot_attn.parameters()}
        slots = [p for p in main if id(p) in of_slots]
        decoder = [p for p in main if id(p) not in of_slots]
        self.modules = (dvae, slots, decoder)
        # What a step reads and writes has its place: that of the graph.
        self.indices = torch.zeros(settings.batch_size, dtype=torch.int64, device=device)
        self.keys = torch.zeros(settings.batch_size, 2, dtype=torch.int32, device=device)
        self.tau, lr_dvae, lr_main = self.numbers = [
            torch.zeros((), device=device) for _ in range(3)
        ]
        self.values = torch.zeros(len(COLUMNS), device=device)
        self.optimizer = torch.optim.Adam(
            [{"params": dvae, "lr": lr_dvae}, {"params": main, "lr": lr_main}],
            fused=True,
            capturable=device.type == "cuda",
        )
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, plan: Plan) -> Tensor:
        """Takes the steps of a plan; returns their `COLUMNS`, ``[steps, 6]`` on the device."""
        history = self.values.new_empty(len(plan.indices), len(COLUMNS))
        for row in range(len(history)):
            self.indices.copy_(plan.indices[row])
            self.keys.copy_(plan.keys[row])
            for number, value in zip(self.numbers, plan.numbers[row], strict=True):
                number.copy_(value)
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
            history[row].copy_(self.values)
        return history

    def reset(self) -> None:
        """Forgets all steps, in place: a captured graph stays valid."""
        self.model.load_state_dict(self.initial)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def capture(self) -> None:
        """Makes one CUDA graph of a step, which has run before; takes none.

        Raises:
            RuntimeError: If something in it cannot be captured.
        """
        self.optimizer.zero_grad(set_to_none=True)  # the graph's gradients lie in its own memory
        self.graph, _ = capture(self._step)

    def _step(self) -> None:
        """Forward and backward in bf16 on CUDA, norms, clipping, Adam."""
        self.optimizer.zero_grad(set_to_none=True)
        image = self.images.images(self.indices)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = torch.stack(self.losses(image, self.keys, tau=self.tau))
        torch.autograd.backward(losses.sum())
        norms = [_norm(module, 2.0) for module in self.modules]
        largest = _norm(self.parameters, math.inf)
        if math.isfinite(self.settings.clip):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip, largest)
        self.optimizer.step()
        self.values.copy_(torch.stack((*losses.detach(), *norms, largest)))


def _norm(parameters: list[torch.nn.Parameter], kind: float) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, norm_type=kind)
