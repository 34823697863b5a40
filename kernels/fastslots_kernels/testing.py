"""What tests and tools share: the papers' shapes, seeded problems, and how far a result may be from float64.

The error triangle: a result and the eager reference, both in one dtype, against the float64 reference on the
same rounded tensors. Nothing here imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastslots_kernels.api import slot_attention
from fastslots_kernels.checks import check_multiple
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.weights import SlotAttentionWeights

FLOAT64_BOUND = 1e-9


class Shape(NamedTuple):
    """Sizes, and the number of iterations that goes with them."""

    sizes: Sizes
    num_iterations: int


# slate*: field sizes of SLATE at 64, 96 and 128 pixels. clevr: slot attention on 128 x 128 features.
# dinosaur*: DINOSAUR on ViT features, with 11 or 24 slots. long: as many inputs as a video has.
SHAPES = {
    "slate64": Shape(Sizes(50, 256, 192, 6, 192, 1, 192), 7),
    "slate96": Shape(Sizes(50, 576, 192, 6, 192, 1, 192), 7),
    "slate128": Shape(Sizes(50, 1024, 192, 12, 192, 1, 192), 7),
    "clevr": Shape(Sizes(64, 16_384, 64, 11, 64, 1, 128), 3),
    "dinosaur": Shape(Sizes(64, 1369, 256, 11, 256, 1, 1024), 3),
    "dinosaur24": Shape(Sizes(64, 1369, 256, 24, 256, 1, 1024), 3),
    "long": Shape(Sizes(1, 2**20, 64, 16, 64, 1, 64), 3),
}


class FigureTwo(nn.Module):
    """The modules of the paper's Figure 2 and nothing else; every parameter is random."""

    def __init__(self, c: int, d: int, m: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm_inputs = nn.LayerNorm(c)
        self.norm_slots = nn.LayerNorm(d)
        self.norm_mlp = nn.LayerNorm(d)
        self.project_q = nn.Linear(d, d, bias=False)
        self.project_k = nn.Linear(c, d, bias=False)
        self.project_v = nn.Linear(c, d, bias=False)
        self.gru = nn.GRUCell(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, m), nn.ReLU(), nn.Linear(m, d))
        for name, parameter in self.named_parameters():
            # Of usual size: logits of unusual size would amplify rounding. Scales of one and biases of zero
            # would hide errors.
            scale = min(0.3, parameter.shape[-1] ** -0.5)
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data.copy_(noise + (1 if "norm" in name and "weight" in name else 0))


class Results(NamedTuple):
    """Of one call, by name."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass
class Problem:
    """Leaves, output gradients and options of one call of `slot_attention`, in one dtype."""

    inputs: Tensor  # [B, N, C]; NaN where masked
    slots: Tensor  # [B, K, D]
    mask: Tensor | None  # [B, N]
    module: FigureTwo
    d_slots: Tensor  # [B, K, D]
    d_attn: Tensor  # [B, N, K]
    options: dict[str, Any]

    @classmethod
    def make(
        cls,
        sizes: Sizes,
        dtype: torch.dtype = torch.float64,
        *,
        masked: bool = False,
        mean: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> Problem:
        """Draws a problem in float32 and rounds it: the same numbers for every dtype.

        Args:
            sizes: Of the call.
            dtype: Of all tensors.
            masked: Whether to mask out about 30 % of the inputs.
            mean: Of the inputs, whose standard deviation is 1.
            seed: Of all numbers.
            options: Of `slot_attention`, beside heads and mask.
        """
        check_multiple("slot_size", sizes.slot_size, "num_heads", sizes.num_heads)
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, c, k, d, num_heads, m = sizes
        inputs, slots, mask = mean + normal(b, n, c), normal(b, k, d), None
        if masked:
            mask = torch.rand(b, n, generator=generator) > 0.3
            mask[0, 0] = True
            inputs = inputs.masked_fill(~mask[..., None], torch.nan)
        module = FigureTwo(c, d, m, generator)
        d_slots, d_attn = normal(b, k, d), normal(b, n, k)
        options = {"num_iterations": 3, "num_heads": num_heads, **options}
        return cls(inputs, slots, mask, module, d_slots, d_attn, options).to(dtype)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Problem:
        """The same numbers rounded to another dtype, and on another device if one is given."""
        device = device or self.inputs.device
        w = self.weights
        module = FigureTwo(w.input_size, w.slot_size, len(w.mlp_0_bias), torch.Generator())
        module.load_state_dict(self.module.state_dict())
        return Problem(
            self.inputs.to(device, dtype),
            self.slots.to(device, dtype),
            None if self.mask is None else self.mask.to(device),
            module.to(device, dtype),
            self.d_slots.to(device, dtype),
            self.d_attn.to(device, dtype),
            self.options,
        )

    def steady(self) -> Problem:
        """Hidden units of the MLP are on or off: none that rounding switches, which no bound foresees."""
        bias = self.weights.mlp_0_bias.detach()
        bias[::2], bias[1::2] = 4.0, -4.0
        return self

    @property
    def weights(self) -> SlotAttentionWeights:
        """The module's."""
        return SlotAttentionWeights.from_module(self.module)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Inputs, slots and weights by name, as new leaves."""
        tensors = {"inputs": self.inputs, "slots": self.slots, **self.weights.named_tensors()}
        return {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}

    def outputs(self, *leaves: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Slots and attention as a function of the leaves."""
        inputs, slots, *tensors = leaves
        weights = SlotAttentionWeights.from_tensors(tensors, self.weights.norm_eps)
        options = {"mask": self.mask, **self.options, **options}
        new, attn, _ = slot_attention(inputs, slots, weights, **options)
        assert attn is not None
        return new, attn

    def results(self, backend: str, **options: Any) -> Results:
        """Outputs, and gradients of the leaves: zeros for one that has none."""
        leaves = self.leaves
        new, attn = self.outputs(*leaves.values(), backend=backend, **options)
        gradients = torch.autograd.grad(
            [new, attn],
            list(leaves.values()),
            [self.d_slots.to(new.dtype), self.d_attn.to(attn.dtype)],
            allow_unused=True,
            materialize_grads=True,
        )
        outputs = {"slots": new.detach(), "attn": attn.detach()}
        return Results(outputs, dict(zip(leaves, gradients, strict=True)))

    def errors(self, backend: str) -> list[Comparison]:
        """What `judge` says of a backend on these tensors."""
        oracle = self.to(torch.float64).results("reference")
        return judge(self.results(backend), self.results("reference"), oracle, self.inputs.dtype)


class Comparison(NamedTuple):
    """One tensor's largest errors, absolute."""

    name: str
    error: float  # of the result that is judged
    eager_error: float  # of the reference in the same dtype
    scale: float  # the largest entry, which the bound is relative to
    bound: float  # what the error may be

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound

    @property
    def share(self) -> float:
        """The error over the bound: at most 1 if it is ok; infinite where nothing may be off."""
        if self.bound:
            return self.error / self.bound
        return math.inf if self.error else 0.0


def compare(
    actual: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    scale: float | None = None,
) -> list[Comparison]:
    """Judges results by the rule ``max|actual - oracle| <= 2 max|eager - oracle| + eps * scale``.

    In float64, where eager and oracle are the same, by ``max|actual - oracle| <= 1e-9 * scale``.

    Args:
        actual: What is judged, by name.
        eager: The reference in ``dtype``, by the same names.
        oracle: The reference in float64 on the same rounded tensors.
        dtype: Of the computation that is judged.
        scale: What eps is relative to. Default: each tensor's own largest entry. Gradients share the
            `largest` of their call, since some are zero in exact arithmetic.

    Returns:
        One comparison for each entry of ``oracle``, in its order.
    """
    found = []
    for name, exact in oracle.items():
        error, eager_error = (largest(x[name].double() - exact) for x in (actual, eager))
        size = largest(exact) if scale is None else scale
        if dtype == torch.float64:
            bound = FLOAT64_BOUND * size
        else:
            bound = 2 * eager_error + torch.finfo(dtype).eps * size
        found.append(Comparison(name, error, eager_error, size, bound))
    return found


def judge(actual: Results, eager: Results, oracle: Results, dtype: torch.dtype) -> list[Comparison]:
    """`compare` of all outputs, and of all gradients, as ``d name``, by their common largest entry."""
    scale = largest(*oracle.gradients.values())
    gradients = compare(actual.gradients, eager.gradients, oracle.gradients, dtype, scale=scale)
    named = [row._replace(name=f"d {row.name}") for row in gradients]
    return compare(actual.outputs, eager.outputs, oracle.outputs, dtype) + named


def largest(*tensors: Tensor) -> float:
    """The largest absolute entry of tensors of one dtype; NaN if there is one."""
    found = [x.abs().max() for x in tensors if x.numel()]
    return float(torch.stack(found).max()) if found else 0.0
