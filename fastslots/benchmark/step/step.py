"""A training step of one provider: forward, backward, clipping and Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastslots.benchmark.measure.precision import autocast
from fastslots.benchmark.measure.timing import Stopwatch
from fastslots.benchmark.step.cases import StepCase, StepProvider
from fastslots.models.slate import SLATE, SLATEConfig, SLATEOutput
from fastslots.models.slate.reference import PublicOutput, PublicSLATE
from fastslots.noise import sample_keys

# The recipe's; a step's cost does not depend on them.
TAU = 1.0
CLIP = 1.0
LR_DVAE, LR_MAIN = 3e-4, 1e-4


class StepTimes(NamedTuple):
    """Of one step, in ms."""

    forward_ms: float
    backward_ms: float
    update_ms: float  # clipping, Adam, freeing the gradients

    @property
    def step_ms(self) -> float:
        """All of it."""
        return sum(self)


class PartTimes(NamedTuple):
    """Of one forward, in ms, cut where both implementations pass from module to module."""

    encoder_ms: float  # the dVAE's, without the logits
    tokens_ms: float  # logits, both draws of tokens, the dVAE's decoder and loss
    slots_ms: float  # embedding, slot attention
    transformer_ms: float
    output_ms: float  # the token logits and their cross-entropy


class Step:
    """A model, its optimiser and a batch of noise images.

    Public and fastslots models start from the same weights. "public" takes plain Adam, as its code
    does, fastslots the fused one and a key per image, as `fastslots train` does.

    Args:
        provider: How to compute.
        case: What.
        device: Where.
    """

    def __init__(self, provider: StepProvider, case: StepCase, device: torch.device) -> None:
        self.provider, self.case, self.device = provider, case, device
        self.uses_cuda_graphs = provider.compiled and device.type == "cuda"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            public = PublicSLATE(case.config)
            shape = (case.batch_size, case.config.image_channels, *[case.config.image_size] * 2)
            self.image = torch.rand(shape).to(device)
        model: PublicSLATE | SLATE = public
        if provider.implementation == "fastslots":
            model = load_public(public, case.config, provider.gradient)
        self.model = model.to(device).train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = self._adam()
        self._forward: Callable[..., PublicOutput | SLATEOutput] = self.model
        self._tau: float | Tensor = TAU
        if provider.compiled:
            mode = "reduce-overhead" if self.uses_cuda_graphs else "default"
            self._forward = torch.compile(self.model, fullgraph=True, dynamic=False, mode=mode)
            self._tau = torch.tensor(TAU, device=device)  # a number would be part of the graph
        self._count = 0

    @property
    def name(self) -> str:
        """Provider and gradient."""
        return f"{self.provider.label}, {self.provider.gradient}"

    def forward(self) -> Tensor:
        """The loss."""
        noise: dict[str, Tensor] = {}
        if self.provider.implementation == "fastslots":
            keys = sample_keys(range(self.case.batch_size), 0, "step", self._count)
            noise = {"keys": keys.to(self.device, non_blocking=True)}
        self._count += 1
        if self.uses_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(self.case.precision, self.device):
            output = self._forward(self.image, self._tau, **noise)
        return output.cross_entropy + output.mse

    def backward(self, loss: Tensor) -> None:
        """Gradients of all parameters."""
        loss.backward()

    def update(self) -> None:
        """Clips, changes the parameters, frees the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, CLIP, norm_type=float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def backward_and_free(self, loss: Tensor) -> None:
        """The backward, for counting its memory; leaves no gradients behind."""
        self.backward(loss)
        self.optimizer.zero_grad(set_to_none=True)

    def run(self) -> Tensor:
        """A whole step; returns the loss, detached."""
        loss = self.forward()
        self.backward(loss)
        self.update()
        return loss.detach()

    def times(self) -> StepTimes:
        """Times a whole step."""
        watch = Stopwatch(self.device)
        loss = self.forward()
        watch.mark()
        self.backward(loss)
        watch.mark()
        self.update()
        watch.mark()
        return StepTimes(*watch.laps_ms())

    def part_times(self) -> PartTimes:
        """Times the parts of a forward; under torch.compile there are none."""
        model: Any = self.model
        watch = Stopwatch(self.device)

        def mark(*_: object) -> None:
            watch.mark()

        hooks = [
            model.dvae.encoder[-2].register_forward_hook(mark),
            model.dictionary.register_forward_pre_hook(mark),
            model.slot_attn.register_forward_hook(mark),
            model.tf_dec.register_forward_hook(mark),
        ]
        try:
            self.forward()
        finally:
            for hook in hooks:
                hook.remove()
        watch.mark()
        return PartTimes(*watch.laps_ms())

    def _adam(self) -> torch.optim.Adam:
        dvae = [p for n, p in self.model.named_parameters() if p.requires_grad and "dvae" in n]
        main = [p for n, p in self.model.named_parameters() if p.requires_grad and "dvae" not in n]
        groups = [{"params": dvae, "lr": LR_DVAE}, {"params": main, "lr": LR_MAIN}]
        return torch.optim.Adam(groups, fused=self.provider.implementation == "fastslots" or None)


def load_public(public: PublicSLATE, config: SLATEConfig, gradient: str) -> SLATE:
    """Fastslots with the weights of the public form, on the CPU and in eval mode.

    Args:
        public: The model.
        config: Its settings.
        gradient: "implicit" or "unrolled".
    """
    settings = asdict(config) | {"gradient": "neumann" if gradient == "implicit" else gradient}
    return SLATE.from_official(public.state_dict(), **settings)
