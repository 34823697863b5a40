"""What kernels are shipped for, and the launches that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fastslots import SlotAttention
from fastslots.tools.ahead_of_time import Configuration, configuration_of
from fastslots.tools.machine_code import CHIPS
from fastslots_kernels import SlotAttentionWeights
from fastslots_kernels.causal import launches as causal
from fastslots_kernels.fused import call as fused
from fastslots_kernels.fused import forward
from fastslots_kernels.fused.attend import mask_dtype
from fastslots_kernels.fused.backward import run_backward
from fastslots_kernels.fused.launch import Launch, record_launches
from fastslots_kernels.fused.products import fold
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.testing import SHAPES

# Of every configuration, by chip and by what uses it: programs of the largest launch.
Uses = dict[Configuration, dict[str, dict[str, int]]]


class Precision(NamedTuple):
    """Dtypes of one call."""

    inputs: torch.dtype
    slots: torch.dtype
    tile: torch.dtype
    products: str = "ieee"  # of float32


PRECISIONS = {
    "bf16": Precision(torch.bfloat16, torch.float32, torch.bfloat16),
    "fp16": Precision(torch.float16, torch.float32, torch.float16),
    "mixed": Precision(torch.float32, torch.float32, torch.bfloat16),
    "tf32": Precision(torch.float32, torch.float32, torch.float32, "tf32"),
    "ieee": Precision(torch.float32, torch.float32, torch.float32),
    "fp64": Precision(torch.float64, torch.float64, torch.float64),
}


@dataclass(frozen=True)
class Workload:
    """A shape that kernels are shipped for, and what it is run with.

    Args:
        sizes: Of the call.
        precisions: Keys of `PRECISIONS`.
        num_iterations: Before the tracked step.
        optional: Whether to use what most calls do not: a mask, a tolerance, a loss on the attention.
    """

    sizes: Sizes
    precisions: tuple[str, ...]
    num_iterations: int = 3
    optional: bool = False


def _paper(name: str, *precisions: str) -> Workload:
    sizes, num_iterations = SHAPES[name]
    return Workload(sizes, precisions, num_iterations)


# What trains most is bfloat16 under autocast: every width of the papers has it, with inputs in bfloat16, as
# SLATE's layers make them, and in float32 ("mixed"). Float32 tiles need most registers and memory: the usual
# width has them as TF32, the largest in full. The rest is compiled once each: float16, options, several
# heads, and float64, which is for gradcheck alone.
WORKLOADS = {
    "slate64": _paper("slate64", "bf16", "mixed", "tf32"),
    "slate96": _paper("slate96", "bf16", "mixed", "tf32"),
    "slate128": _paper("slate128", "bf16", "mixed", "tf32"),
    "clevr": _paper("clevr", "bf16", "mixed"),
    "dinosaur": _paper("dinosaur", "bf16", "mixed", "ieee"),
    "dinosaur24": _paper("dinosaur24", "bf16", "mixed"),
    "long": _paper("long", "fp16"),
    "ragged": Workload(Sizes(3, 1001, 40, 5, 48, 3, 56), ("mixed", "fp64"), 5, optional=True),
    "gradcheck": Workload(Sizes(2, 20, 16, 3, 16, 1, 16), ("fp64",)),
}


@dataclass(frozen=True)
class Decoder:
    """The self-attention of a decoder that trains.

    Args:
        batch: B.
        length: N.
        num_heads: H.
        size: Width of a head.
        precisions: Keys of `PRECISIONS`.
    """

    batch: int
    length: int
    num_heads: int
    size: int
    precisions: tuple[str, ...]


DECODERS = {
    "decoder128": Decoder(50, 1024, 8, 24, ("bf16", "tf32", "ieee", "fp64")),
    "decoder-wide": Decoder(2, 1001, 3, 64, ("bf16", "ieee")),
}
ALL: dict[str, Workload | Decoder] = {**WORKLOADS, **DECODERS}
# What trains most: the papers' shapes in bfloat16.
MOST = frozenset(
    (name, "bf16") for name in ALL if name not in ("long", "ragged", "gradcheck", "decoder-wide")
)


def record(
    workload: Workload, precision: Precision, chip: str, device: str = "meta"
) -> list[Launch]:
    """The launches of iterations, tracked step and its backward on a chip, in their order.

    On tensors without memory they can be compiled; on a GPU's, run in this order, they compute the step.
    """
    sizes, dtype = workload.sizes, precision.slots

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    b, n, c, k, d, heads, m = sizes
    with torch.device(device):
        module = SlotAttention(1, k, c, d, m, heads).to(dtype)
    weights = SlotAttentionWeights.from_module(module)
    mask = None
    if workload.optional:
        mask = torch.ones(b, n, dtype=mask_dtype(precision.tile), device=device)
    inputs, slots = normal(b, n, c, dtype=precision.inputs), normal(b, k, d)
    norm_eps, tolerance = weights.norm_eps, 1e-3 if workload.optional else None
    with (
        record_launches() as launches,
        torch.no_grad(),
        mock.patch.object(fused, "num_processors", return_value=CHIPS[chip].multiprocessors),
        mock.patch.object(fused, "has_warp_groups", return_value=chip == "sm_90"),
    ):
        folded = fold(weights, heads, precision.tile, precision.products)
        call = fused.Call(inputs, mask, folded, sizes, 1e-8, norm_eps, precision.products)
        *_, normed = forward.run_iterations(call, slots, workload.num_iterations, tolerance)
        _, attn, sums, gates = forward.run_step(call, slots, normed, dtype)
        d_attn = attn if workload.optional else None
        run_backward(call, weights, slots, sums, gates, slots, d_attn, need_inputs=True)
    return launches


def record_decoder(decoder: Decoder, precision: Precision, chip: str) -> list[Launch]:
    """The launches of a causal attention with dropout and of its backward on a chip."""
    b, n, heads = decoder.batch, decoder.length, decoder.num_heads
    width = heads * decoder.size
    x = torch.empty(b, n, width, dtype=precision.tile, device="meta")
    rows, columns = (
        torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((b, heads * n), (b, n))
    )
    with (
        record_launches() as launches,
        mock.patch.object(causal, "float32_precision", return_value=precision.products),
        mock.patch.object(fused, "has_warp_groups", return_value=chip == "sm_90"),
    ):
        call = causal.Call(x, x, x, rows, columns, heads, 0.1)
        output, lse = causal.forward(call)
        causal.backward(call, output, lse, grad=output)
    return launches


def record_all(calls: Iterable[tuple[str, str, str]]) -> Uses:
    """The distinct configurations of calls: names of a workload, of one of its precisions, and of a chip."""
    uses: Uses = {}
    for name, precision, chip in calls:
        workload = ALL[name]
        launches = (
            record_decoder(workload, PRECISIONS[precision], chip)
            if isinstance(workload, Decoder)
            else record(workload, PRECISIONS[precision], chip)
        )
        for one in launches:
            by_chip = uses.setdefault(configuration_of(one), {})
            users, user = by_chip.setdefault(chip, {}), f"{name} {precision}"
            users[user] = max(users.get(user, 0), math.prod(one.grid))
    return uses
