"""What `gradcheck` prints: the errors of a backend on shapes of one's own, beside the eager reference's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from fastslots.devices import choose_device
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.testing import Comparison, Problem

DTYPES = ("float32", "bfloat16", "float16", "float64")


def make_problem(arguments: argparse.Namespace, device: torch.device) -> Problem:
    """Draws a problem in float32, the same numbers on every device."""
    a = arguments
    problem = Problem.make(
        Sizes(a.batch, a.inputs, a.input_size, a.slots, a.slot_size, a.heads, a.mlp),
        torch.float32,
        masked=a.masked,
        mean=a.mean,
        seed=a.seed,
        num_iterations=a.iterations,
        epsilon=a.epsilon,
        gradient=a.gradient,
    )
    return problem.to(torch.float32, device)


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as aligned text."""
    width = max(len(row.name) for row in comparisons)
    lines = [f"{'':{width}}     error   eager's   ratio   allowed     scale"]
    for row in comparisons:
        ratio = f"{row.error / row.eager_error:.2f}" if row.eager_error else "-"
        lines.append(
            f"{row.name:{width}} {row.error:9.2e} {row.eager_error:9.2e} {ratio:>7} {row.bound:9.2e} "
            f"{row.scale:9.2e}  {'ok' if row.ok else 'FAILS'}"
        )
    return "\n".join(lines)


def check_numerically(problem: Problem, backend: str) -> None:
    """Compares gradients in float64 with finite differences, along random directions.

    All steps if they are unrolled. Of an implicit gradient the tracked step alone: the iterations before
    it have no gradient to compare with.

    Raises:
        GradcheckError: If they differ.
    """
    exact = problem.to(torch.float64)
    leaves = [leaf.detach().nan_to_num().requires_grad_() for leaf in exact.leaves.values()]
    options: dict[str, Any] = {"backend": backend}
    if problem.options["gradient"] == "neumann":
        options |= {"num_iterations": 0, "init_gradient": "straight-through"}
    gradcheck(lambda *leaves: exact.outputs(*leaves, **options), leaves, fast_mode=True)


def parse(command: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the arguments; ends the program if one is wrong. Default: those of the command line."""
    parser = argparse.ArgumentParser(
        prog="gradcheck",
        description="Compares a backend of slot attention with the float64 reference on shapes of your "
        "own: per output and per gradient the largest error, that of the eager reference in the same "
        "dtype, their ratio, and what is allowed: twice the eager error plus eps times the scale (the "
        "largest entry: of that output, or of all gradients); in float64, 1e-9 of the scale.",
        epilog="Exit status: 0 if all rows are ok, 1 if one fails, 2 if the call cannot be made.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--batch", type=_count, metavar="B", default=2, help="images")
    add("--inputs", type=_count, metavar="N", default=100, help="inputs of an image")
    add("--input-size", type=_count, metavar="C", default=64, help="width of the inputs")
    add("--slots", type=_count, metavar="K", default=5, help="slots of an image")
    add("--slot-size", type=_count, metavar="D", default=64, help="width of the slots")
    add("--mlp", type=_count, metavar="M", default=128, help="hidden width of the MLP")
    add("--heads", type=_count, metavar="H", default=1, help="heads, a divisor of D")
    add("--dtype", choices=DTYPES, default="float32", help="of inputs, slots and weights")
    add("--tf32", action="store_true", help="products of float32 as TF32: on a GPU")
    add("--float64", action="store_true", help="a second table, in float64")
    add("--iterations", type=int, metavar="T", default=3, help="a tracked step follows if implicit")
    add(
        "--gradient",
        choices=("neumann", "unrolled"),
        default="neumann",
        help="implicit (neumann), or through all steps",
    )
    add("--masked", action="store_true", help="mask out about 30 %% of the inputs, which are NaN")
    add("--mean", type=float, default=0.5, help="of the inputs, whose standard deviation is 1")
    add("--epsilon", type=float, default=1e-8, help="added to the softmax")
    add("--backend", choices=("torch", "triton"), default="triton", help="what is checked")
    add("--device", default="auto", help="cpu or cuda; on the cpu, kernels run in the interpreter")
    add("--seed", type=int, default=0, help="of all tensors")
    add("--numeric", action="store_true", help="finite differences in float64 too: small shapes")
    return parser.parse_args(command)


def main(command: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        command: Its arguments. Default: those of the command line.

    Returns:
        0, or 1 if an error is larger than rounding explains, or 2 if the call cannot be made.
    """
    a = parse(command)
    if a.tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        device = choose_device(a.device)
        problem = make_problem(a, device)
        dtypes = dict.fromkeys([a.dtype, "float64"] if a.float64 else [a.dtype])
        failed = [dtype for dtype in dtypes if not _report(problem, a, device, dtype)]
        if a.numeric and not _report_numeric(problem, a.backend):
            failed.append("finite differences")
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"gradcheck: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"gradcheck: {a.backend} fails: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _report(problem: Problem, a: argparse.Namespace, device: torch.device, dtype: str) -> bool:
    comparisons = problem.to(getattr(torch, dtype)).errors(a.backend)
    print(
        f"\n{a.backend} on {device}: B {a.batch}, N {a.inputs}, C {a.input_size}, K {a.slots}, "
        f"D {a.slot_size}, M {a.mlp}, H {a.heads}{', masked' if a.masked else ''}, {a.gradient}, "
        f"{a.iterations} iterations, {dtype}{' as TF32' if a.tf32 and dtype == 'float32' else ''}"
    )
    print(table(comparisons))
    return all(row.ok for row in comparisons)


def _report_numeric(problem: Problem, backend: str) -> bool:
    try:
        check_numerically(problem, backend)
    except GradcheckError as error:
        print(f"\nfinite differences in float64: FAILS\n{error}")
        return False
    print("\nfinite differences in float64: ok")
    return True


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return int(text)
