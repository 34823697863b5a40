"""What is measured: shapes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from fastslots_kernels.checks import check_choice, check_count, check_multiple
from fastslots_kernels.fused.sizes import Sizes
from fastslots_kernels.testing import SHAPES

DEFAULT_ITERATIONS = (1, 3, 7, 15, 31, 63, 127)
DTYPES = {str(t)[6:]: t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
# "ieee": products in the tensors' dtype, tf32 off. "tf32": float32 products rounded to tf32. "bf16":
# bfloat16 autocast around float32 tensors.
PRECISIONS = ("ieee", "tf32", "bf16")
GRADIENTS = ("unrolled", "implicit")


@dataclass(frozen=True)
class Case:
    """One shape and the numbers of iterations to measure it at.

    Args:
        name: Of the case; the plot's file is named after it.
        batch: B.
        num_inputs: N.
        input_size: C, width of the inputs.
        num_slots: K.
        slot_size: D, width of the slots.
        mlp_hidden_size: Hidden width of the MLP.
        num_heads: H, which divides D.
        dtype: A key of `DTYPES`, for inputs, slots and weights.
        iterations: T, each measured.
        precision: Of `PRECISIONS`; "tf32" and "bf16" need dtype float32.

    Raises:
        TypeError: If a number is no int.
        ValueError: If a number is not positive, heads do not divide D, a name is unknown, or precision
            and dtype do not go together.
    """

    name: str
    batch: int
    num_inputs: int
    input_size: int
    num_slots: int
    slot_size: int
    mlp_hidden_size: int
    num_heads: int = 1
    dtype: str = "float32"
    iterations: tuple[int, ...] = DEFAULT_ITERATIONS
    precision: str = "ieee"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_choice("precision", self.precision, PRECISIONS)
        if self.precision != "ieee" and self.dtype != "float32":
            raise ValueError(f"precision {self.precision!r} needs dtype float32; got {self.dtype}")
        for name, size in self.sizes.items():
            check_count(name, size, 1)
        check_multiple("slot_size", self.slot_size, "num_heads", self.num_heads)
        if not self.iterations:
            raise ValueError("iterations must be at least one number; got none")
        for count in self.iterations:
            check_count("iterations", count, 1)

    @classmethod
    def of(cls, name: str, sizes: Sizes, **options: Any) -> Case:
        """A case of these sizes; options are the other fields."""
        b, n, c, k, d, num_heads, m = sizes
        return cls(name, b, n, c, k, d, m, num_heads, **options)

    @property
    def sizes(self) -> dict[str, int]:
        """All sizes, by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type == "int"}

    @property
    def input_bytes(self) -> int:
        """Size of the inputs."""
        return self.batch * self.num_inputs * self.input_size * DTYPES[self.dtype].itemsize


# cpu-targets: what CHANGELOG and README claim for two cores.
PRESETS: dict[str, tuple[Case, ...]] = {
    "small": (Case("small", 16, 256, 192, 6, 192, 192),),
    **{name: (Case.of(name, shape.sizes),) for name, shape in SHAPES.items()},
    "cpu-targets": (
        Case("tokens-256", 16, 256, 192, 6, 192, 192, iterations=(7,)),
        Case("tokens-1024", 8, 1024, 192, 12, 192, 192, iterations=(1, 7, 64)),
        Case("features-16384", 2, 16_384, 64, 11, 64, 64, iterations=(3,)),
    ),
}


def preset(name: str) -> tuple[Case, ...]:
    """The cases of a preset.

    Raises:
        ValueError: If there is none of that name.
    """
    return PRESETS[check_choice("preset", name, tuple(PRESETS))]


def check_names(what: str, names: Sequence[str] | None, valid: tuple[str, ...]) -> None:
    """Accepts None, or one or more valid names.

    Raises:
        ValueError: If there is none or an unknown one.
    """
    if names is not None and not (names and set(names) <= set(valid)):
        raise ValueError(f"{what} must be one or more of {valid}; got {list(names)}")
