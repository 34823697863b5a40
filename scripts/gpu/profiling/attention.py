"""SLATE's causal self-attention with keyed dropout: kernels, parts, and PyTorch's own; other tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from fastslots.benchmark.measure.graphs import capture, replay_us, side_stream
from fastslots.benchmark.measure.memory import memory_use
from fastslots.models.slate.causal_attention import causal_attention
from fastslots.noise import Noise, sample_keys
from fastslots_kernels.causal import launches
from fastslots_kernels.causal.launches import Call, Tile, Tiles
from fastslots_kernels.fused.launch import Launch, record_launches
from gpu.job import Job
from gpu.profiling.tune import NO_TILES, Variant, time_variant

BATCH_SIZE, HEADS, SIZE, DROPOUT = 50, 8, 24, 0.1
# By image size: positions. The public form's tables of all of them would not fit at 256 pixels.
LENGTHS = {"128px": 1024, "64px": 256, "96px": 576, "256px": 4096}
TINY = {"16px": 16}
TUNED = "128px"
ROUNDS, CALLS = 7, 5
TILES = (
    *(Tile(64, 64, 4, stages, resident) for stages in (1, 2, 3) for resident in (1, 3, 4)),
    Tile(128, 64, 8, 2),
    Tile(128, 64, 4, 2),
    Tile(128, 32, 4, 2),
    Tile(64, 32, 4, 2),
    Tile(64, 32, 4, 1, 5),
    Tile(128, 128, 8, 2),
)


class Problem(NamedTuple):
    """Queries, keys, values, the gradient of the output, and the keys of the noise."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    keys: Tensor

    @classmethod
    def make(cls, length: int, device: torch.device, batch: int = BATCH_SIZE) -> Problem:
        """In bfloat16; heads as a layer splits them."""
        generator = torch.Generator(device).manual_seed(0)
        shape = batch, length, HEADS, SIZE
        tensors = [
            torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            for _ in range(4)
        ]
        q, k, v, grad = (x.transpose(1, 2) for x in tensors)
        q, k, v = (x.requires_grad_() for x in (q, k, v))
        return cls(q, k, v, grad, sample_keys(range(batch), 0).to(device))


def _keyed(backend: str) -> Callable[[Problem], Tensor]:
    return lambda p: causal_attention(p.q, p.k, p.v, DROPOUT, Noise(p.keys), backend)


def _sdpa(p: Problem) -> Tensor:
    return scaled_dot_product_attention(p.q, p.k, p.v, dropout_p=DROPOUT, is_causal=True)


def _whole(p: Problem) -> Tensor:
    length = p.q.shape[2]
    future = torch.ones(length, length, dtype=torch.bool, device=p.q.device).triu(1)
    logits = (p.q @ p.k.transpose(-1, -2) * SIZE**-0.5).masked_fill(future, -torch.inf)
    return dropout(logits.softmax(-1), DROPOUT) @ p.v


# The first two drop the same entries; those of PyTorch follow its generator.
PROVIDERS = {
    "triton": _keyed("triton"),
    "torch": _keyed("torch"),
    "scaled_dot_product_attention": _sdpa,
    "whole table": _whole,
}


def main(job: Job) -> None:
    """Times every image size, then tiles at one of them."""
    lengths = TINY if job.dry_run else LENGTHS
    job.each(lengths, lambda unit: _measure(job, unit, lengths[unit]))
    job.each([f"tiles {TUNED}"], lambda unit: _tune(job, unit))


def _measure(job: Job, unit: str, length: int) -> bool:
    problem = Problem.make(length, job.device, 2 if job.dry_run else BATCH_SIZE)
    error = _difference(problem) if job.device.type == "cuda" else 0.0
    for name, function in PROVIDERS.items():
        if job.device.type != "cuda" and name == "triton":
            continue
        try:
            row = _times(problem, function)
        except torch.OutOfMemoryError:
            job.row(unit, attention=name, error="out of memory")
            torch.cuda.empty_cache()
            continue
        job.row(unit, attention=name, length=length, batch=len(problem.q), **row)
    job.row(unit, difference=error)
    return error <= 0.05


def _difference(problem: Problem) -> float:
    """Between kernels and parts: the largest, relative to the largest entry, of output and gradients."""
    ours, parts = (results(problem, PROVIDERS[name]) for name in ("triton", "torch"))
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(ours, parts, strict=True)
    )


def results(p: Problem, function: Callable[[Problem], Tensor]) -> list[Tensor]:
    """Output, and gradients of queries, keys and values."""
    output = function(p)
    return [output.detach(), *torch.autograd.grad(output, (p.q, p.k, p.v), p.grad)]


def _times(problem: Problem, function: Callable[[Problem], Tensor]) -> dict[str, float]:
    """µs of the forward pass, and of it with the backward, replayed as CUDA graphs; bytes at their peak."""
    device = problem.q.device

    def backward(output: Tensor) -> None:
        torch.autograd.grad(output, (problem.q, problem.k, problem.v), problem.grad)

    kept, peak = memory_use(lambda: function(problem), backward, device)
    return {
        "forward_us": _graphed_us(lambda: function(problem), device),
        "step_us": _graphed_us(lambda: results(problem, function), device),
        "kept_bytes": kept,
        "peak_bytes": peak,
    }


def _graphed_us(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        work()
        return 0.0
    with side_stream(device):
        for _ in range(2):
            work()
    torch.cuda.synchronize()
    graph, _ = capture(work)
    return replay_us(graph, ROUNDS, CALLS)


def _tune(job: Job, unit: str) -> None:
    job.needs_cuda(NO_TILES)
    for tile, one in variants(job.device):
        options = {"shipped": True} if tile is None else tile._asdict()
        time_variant(job, unit, Variant("", options, [one]))


def variants(device: torch.device) -> Iterator[tuple[Tile | None, Launch]]:
    """The launches of one call and its backward with the shipped tiles, then with all others."""
    length = LENGTHS[TUNED]
    q, k, v, output, grad = (
        torch.randn(BATCH_SIZE, length, HEADS * SIZE, device=device).bfloat16() for _ in range(5)
    )
    rows = torch.randint(-(2**31), 2**31, (BATCH_SIZE, HEADS * length), device=device).int()
    columns = rows[:, :length].contiguous()
    call = Call(q, k, v, rows, columns, HEADS, DROPOUT)
    lse = torch.full(rows.shape, 10.0, device=device)
    for tile in (None, *TILES):
        with record_launches() as found, ExitStack() as stack:
            if tile is not None:
                by_keys = tile._replace(queries=tile.keys, keys=tile.queries)
                chosen = mock.patch.object(Call, "tiles", Tiles(tile, tile, by_keys))
                stack.enter_context(chosen)
            launches.forward(call)
            launches.backward(call, output, lse, grad)
        for one in found:
            yield tile, one
