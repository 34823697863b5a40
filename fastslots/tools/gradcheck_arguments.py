"""The arguments of `gradcheck`, read before anything is imported that kernels depend on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

DTYPES = ("float32", "bfloat16", "float16", "float64")


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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return int(text)
