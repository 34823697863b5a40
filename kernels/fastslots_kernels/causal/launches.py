"""How the kernels of causal attention are launched: tiles by dtype and width."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.causal.kernels import (
    attention_kernel,
    keys_backward_kernel,
    queries_backward_kernel,
)
from fastslots_kernels.causal.ops import lse_dtype
from fastslots_kernels.fused import call as fused
from fastslots_kernels.fused.folded import float32_precision
from fastslots_kernels.fused.launch import launch
from fastslots_kernels.fused.sizes import ceil_div, padded


class Tile(NamedTuple):
    """How a kernel is run."""

    queries: int  # of a tile, a power of two
    keys: int
    warps: int
    stages: int  # tiles on their way at a time
    resident: int = 1  # programs that a multiprocessor holds at a time


class Tiles(NamedTuple):
    """Of the three kernels. One dimension of a tile is a multiple of the other: see the kernels."""

    forward: Tile
    queries: Tile
    keys: Tile


class Call(NamedTuple):
    """Arguments of one call, as those of `fastslots::causal_attention`; tensors are contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor
    columns: Tensor
    num_heads: int
    dropout: float

    @property
    def size(self) -> int:
        """D, the width of a head."""
        return self.q.shape[2] // self.num_heads

    @property
    def tiles(self) -> Tiles:
        """As large as registers hold, and for 16 bits as fast as was measured."""
        groups = fused.has_warp_groups(self.q.device)
        return choose_tiles(self.q.dtype, self.size, float32_precision(), groups)


def choose_tiles(dtype: torch.dtype, size: int, precision: str, warp_groups: bool) -> Tiles:
    """The tiles for heads of a width.

    Args:
        dtype: Of the queries.
        size: Width of a head.
        precision: Of float32, `float32_precision`.
        warp_groups: Whether the matrix units are those of sm_90, which leave more registers.
    """
    if dtype == torch.float64:
        return Tiles(*[Tile(16, 16, 4, 1)] * 3)
    if dtype == torch.float32 and precision == "ieee":
        return Tiles(*[Tile(32, 32, 8, 1) if size <= 32 else Tile(16, 16, 4, 1)] * 3)
    if dtype == torch.float32 or size > 32:
        return Tiles(Tile(64, 32, 4, 1), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1))
    resident = (4, 3) if warp_groups else (2, 2)  # in the backward
    return Tiles(
        Tile(64, 64, 4, 1, resident=4),
        Tile(64, 64, 4, 3, resident[0]),
        Tile(64, 64, 4, 1, resident[1]),
    )


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[B, N, H D]`` and log-sum-exps ``[B, H N]``."""
    output = torch.empty_like(call.q)
    lse = call.rows.new_empty(call.rows.shape, dtype=lse_dtype(call.q.dtype))
    tile = call.tiles.forward
    _launch(call, attention_kernel, tile, tile.queries, (output, lse))
    return output, lse


def backward(
    call: Call, output: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, ``[B, N, H D]``, from that of the output."""
    d_q, d_k, d_v = (torch.empty_like(x) for x in (call.q, call.k, call.v))
    mean = torch.empty_like(lse, dtype=torch.promote_types(call.q.dtype, torch.float32))
    _, by_queries, by_keys = call.tiles
    tensors = output, lse, grad, d_q, mean
    _launch(call, queries_backward_kernel, by_queries, by_queries.queries, tensors)
    _launch(call, keys_backward_kernel, by_keys, by_keys.keys, (lse, grad, mean, d_k, d_v))
    return d_q, d_k, d_v


def _launch(call: Call, kernel: Any, tile: Tile, rows: int, tensors: tuple[Tensor, ...]) -> None:
    batch, length, _ = call.q.shape
    if not call.q.numel():
        return
    blocks = ceil_div(length, rows)
    launch(
        kernel,
        (batch * call.num_heads * blocks,),
        *call[:5],
        *tensors,
        round(call.dropout * 2**32) - 2**31,  # hashes below it drop their entry
        length,
        blocks,
        KEPT=1 / (1 - call.dropout),
        SCALE=call.size**-0.5,
        H=call.num_heads,
        D=call.size,
        PADDED_D=padded(call.size),
        BLOCK_QUERIES=tile.queries,
        BLOCK_KEYS=tile.keys,
        STAGES=tile.stages,
        PRECISION=float32_precision(),
        num_warps=tile.warps,
        resident=tile.resident,
    )
