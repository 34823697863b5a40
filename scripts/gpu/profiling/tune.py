"""Times the kernels of a training step with other tiles, splits and warps than the shipped ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch

from fastslots.benchmark.measure.graphs import capture, replay_us
from fastslots.tools.workloads import PRECISIONS, WORKLOADS, Workload, record
from fastslots_kernels.fused import call, plans
from fastslots_kernels.fused.launch import Launch
from fastslots_kernels.fused.plans import Plan, UpdatePlan
from fastslots_kernels.fused.sizes import Sizes, ceil_div, padded
from gpu.job import Job

SHAPES = ("slate128", "clevr", "slate64", "dinosaur", "dinosaur24")
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
ROUNDS, LEAST_US, ITERATIONS = 5, 300.0, 10
NO_TILES = "there are no tiles to choose on a CPU"
CHIP, PRECISION = "sm_90", "mixed"  # float32 inputs under bfloat16 autocast

# By kernel and columns: rows, warps, stages, programs held at a time, columns worked on at a time.
PLANS: dict[tuple[str, int], Sequence[tuple[int, ...]]] = {
    ("raw", 64): ((64, 4, 2, 4, 64), (64, 4, 1, 5, 64), (64, 4, 3, 4, 64), (32, 4, 1, 5, 64)),
    ("raw", 192): ((32, 4, 1, 4, 64), (32, 4, 2, 4, 64), (64, 4, 1, 2, 64), (64, 4, 2, 2, 64)),
    ("raw", 256): ((32, 4, 1, 3, 64), (32, 4, 2, 3, 64), (64, 4, 1, 2, 64), (64, 4, 2, 2, 64)),
    ("normed", 64): ((64, 4, 3, 5, 64), (64, 4, 2, 6, 64), (64, 4, 4, 5, 64), (128, 4, 3, 3, 64)),
    ("normed", 192): ((64, 4, 2, 3, 64), (64, 4, 3, 2, 64), (128, 4, 2, 2, 64)),
    ("normed", 256): ((64, 4, 2, 3, 64), (64, 4, 3, 2, 64), (128, 4, 2, 1, 64)),
    ("backward", 64): ((64, 4, 1, 3, 64), (64, 4, 1, 2, 64), (64, 4, 2, 3, 64)),
    ("backward", 192): ((64, 4, 1, 2, 64), (64, 4, 2, 2, 64), (32, 4, 1, 2, 64)),
    ("backward", 256): ((64, 4, 1, 2, 128), (64, 8, 1, 1, 64), (32, 4, 1, 2, 64)),
}
# Other options of the kernels that work on slots; what is not named stays as shipped.
OPTIONS: dict[str, Sequence[dict[str, int]]] = {
    "_prepare_backward_kernel": [{"num_warps": 4}, {"num_warps": 16}],
    "_mlp_backward_kernel": [
        {"num_warps": w, "BLOCK_M": m} for w, m in ((2, 32), (4, 32), (4, 64), (8, 64), (2, 16))
    ],
    **{
        name: [
            {"num_warps": w, "CHUNK": k, "STAGES": s}
            for w, k, s in ((8, 64, 3), (8, 64, 6), (8, 32, 7), (4, 64, 4), (4, 32, 7))
        ]
        for name in ("_gru_backward_kernel", "_gates_backward_kernel", "_keys_backward_kernel")
    },
    "_weight_gradients_kernel": [
        {"num_warps": w, "CHUNK": k, "STAGES": s}
        for w, k, s in ((4, 64, 3), (4, 64, 6), (4, 128, 3), (8, 64, 4), (2, 64, 4))
    ],
    **{
        name: [{"num_warps": w, "STAGES": s} for w, s in ((2, 3), (4, 6), (1, 6), (2, 9))]
        for name in ("_fold_kernel", "_fold_backward_kernel")
    },
}


# Plans of the slot update, of which whole iterations are timed.
UPDATES = (
    *(UpdatePlan(rows, columns, 64, 3, 4) for rows in (16, 32) for columns in (16, 32, 64)),
    UpdatePlan(64, 32, 64, 3, 8),
    UpdatePlan(16, 32, 64, 3, 2),
    UpdatePlan(32, 32, 64, 3, 8),
    UpdatePlan(32, 32, 128, 2, 4),
    UpdatePlan(16, 32, 256, 1, 4),
)


class Variant(NamedTuple):
    """A kernel as it could be launched."""

    what: str  # which of the kernel's launches
    options: dict[str, Any]
    launches: list[Launch]  # all of the step up to it, so that what it reads can be made

    @property
    def kernel(self) -> str:
        """Its name."""
        return str(self.launches[-1].kernel.fn.__name__)


def main(job: Job) -> None:
    """Times every variant on every shape; one row each."""
    units = [f"{shape} iteration" for shape in SHAPES]
    job.each(units, lambda unit: _tune_updates(job, unit), most_s=30.0)
    job.each(SHAPES, lambda shape: _tune(job, shape), most_s=90.0)


def all_launches(shapes: Sequence[str] = SHAPES) -> Iterator[Launch]:
    """What `main` compiles, on tensors without memory."""
    for shape in shapes:
        for plan in UPDATES:
            yield from _with_update(plan, WORKLOADS[shape], "meta")
        for variant in variants(WORKLOADS[shape], "meta"):
            yield from variant.launches


def _tune_updates(job: Job, unit: str) -> None:
    """An iteration with every plan of the slot update: from the attention to the keys of the next."""
    job.needs_cuda(NO_TILES)
    workload = WORKLOADS[unit.split()[0]]
    for plan in (None, *UPDATES):
        launches = _with_update(plan, workload, str(job.device))
        for one in launches:
            one.run()
        names = [one.kernel.fn.__name__ for one in launches]
        first, second, third = [i for i, name in enumerate(names) if name == "_attend_kernel"][:3]
        del first  # reads the inputs themselves
        us = _graphed_us(launches[second:third] * ITERATIONS, ROUNDS) / ITERATIONS
        by_kernel = {one.kernel.fn.__name__: time_us(one) for one in launches[second:third]}
        job.row(unit, update=plan, us_p50=us, by_kernel=by_kernel)


def _with_update(plan: UpdatePlan | None, workload: Workload, device: str) -> list[Launch]:
    """The launches of a step with a plan of the slot update; None: the shipped one."""
    if plan is None:
        return record(workload, PRECISIONS[PRECISION], CHIP, device)
    with mock.patch.object(call, "update_plan", return_value=plan):
        return record(workload, PRECISIONS[PRECISION], CHIP, device)


def _tune(job: Job, shape: str) -> None:
    job.needs_cuda(NO_TILES)
    for variant in variants(WORKLOADS[shape], str(job.device)):
        time_variant(job, shape, variant)


def time_variant(job: Job, unit: str, variant: Variant) -> None:
    """Times a variant; one row. One that does not fit is no candidate."""
    us: float | None = None
    error = ""
    try:
        for one in variant.launches[:-1]:
            one.run()
        us = time_us(variant.launches[-1])
    except Exception as problem:  # of Triton or the driver, each of its own type
        error = f"{type(problem).__name__}: {problem}"[:200]
    found = {"options": variant.options, "us_p50": us, "error": error}
    job.row(unit, kernel=variant.kernel, what=variant.what, **found)


def variants(workload: Workload, device: str) -> Iterator[Variant]:
    """All variants of the kernels of a training step at a shape."""
    shipped = record(workload, PRECISIONS[PRECISION], CHIP, device)
    seen = set()
    for at, one in enumerate(shipped):
        name, what = one.kernel.fn.__name__, _what(one)
        if name in seen or name not in OPTIONS:
            continue
        seen.add(name)
        yield Variant(what, {"shipped": True}, shipped[: at + 1])
        for options in OPTIONS[name]:
            yield Variant(what, options, [*shipped[:at], _with(one, options)])
    for kernel in ("raw", "normed", "backward"):
        yield from _attend_variants(workload, device, kernel)


def _attend_variants(workload: Workload, device: str, kernel: str) -> Iterator[Variant]:
    sizes = workload.sizes
    key = (kernel, sizes.input_size, padded(sizes.virtual))
    for plan in map(Plan._make, PLANS[kernel, sizes.input_size]):
        for splits in dict.fromkeys(_possible(sizes, plan, wanted) for wanted in (0, *SPLITS)):
            with ExitStack() as stack:
                for table in (plans._TABLE, plans._LATER):
                    stack.enter_context(mock.patch.dict(table, {key: plan}))
                if splits:
                    fixed = mock.patch.object(call, "num_splits", return_value=splits)
                    stack.enter_context(fixed)
                launches = record(workload, PRECISIONS[PRECISION], CHIP, device)
            done = set()
            for at, chosen in enumerate(launches):
                what = _what(chosen)
                if not what.startswith(kernel) or what in done:
                    continue
                done.add(what)
                options = {"plan": plan, "splits": splits, "programs": chosen.grid[0]}
                yield Variant(what, options, launches[: at + 1])
            if device == "meta":  # the same binary for any number of splits
                break


def _possible(sizes: Sizes, plan: Plan, wanted: int) -> int:
    """The number of splits of whole tiles nearest to what is wanted; 0: what the model chooses."""
    if wanted == 0:
        return 0
    tiles = ceil_div(sizes.num_inputs, plan.rows)
    return ceil_div(tiles, ceil_div(tiles, min(wanted, tiles)))


def _what(one: Launch) -> str:
    name = one.kernel.fn.__name__
    if name == "_attend_backward_kernel":
        return "backward"
    if name == "_attend_kernel":
        words = "normed" if one.constants["NORMALIZED"] else "raw"
        words += " + attn" * (one.argument("attn_ptr") is not None)
        words += " + store" * (one.argument("normed_ptr") is not None)
        return words
    return ""


def _with(one: Launch, options: dict[str, int]) -> Launch:
    """A launch with other options."""
    constants = {**one.constants, **options}
    num_warps = constants.pop("num_warps", one.num_warps)
    grid = one.grid
    if "BLOCK_M" in options:
        size, before = constants["M"], one.constants["BLOCK_M"]
        grid = (grid[0] // ceil_div(size, before) * ceil_div(size, options["BLOCK_M"]),)
    return one._replace(grid=grid, constants=constants, num_warps=num_warps)


def time_us(one: Launch) -> float:
    """Of one launch, in a row of its own kind within a CUDA graph; median of some replays."""
    one.run()
    once = _graphed_us([one], 3)
    count = max(3, min(60, int(LEAST_US / max(once, 1.0))))
    return _graphed_us([one] * count, ROUNDS) / count


def _graphed_us(launches: Sequence[Launch], rounds: int) -> float:
    """Of a CUDA graph of launches that have run before."""
    torch.cuda.synchronize()
    graph, _ = capture(lambda: [one.run() for one in launches])
    return replay_us(graph, rounds)
