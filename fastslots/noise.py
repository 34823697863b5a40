"""Random numbers that follow from keys, one key per sample, not from a generator's state.

A number depends on its sample's key, on how many draws were made before from the same `Noise`, and on its
place in the draw: not on the batch, the process or the device (up to the rounding of logarithms). So a
batch may be split over processes or computed again in parts, a draw may be made once more in the backward
pass instead of being kept, and there is no state to save or for ``torch.compile`` to stumble over.

The numbers are a hash of where they stand. Rows, columns and draws are numbered; each number is hashed
under the 64 bits of its sample's key, and the exclusive or of the three is mixed once more for each
entry. The rounds are those of "triple32", with the key added between multiplications, and "lowbias32"
(Wellons 2018, "Prospecting for Hash Functions").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from fastslots_kernels.derivatives import transforms_active
from fastslots_kernels.fused import why_not_here

# Where the numbers of rows, columns and draws begin.
_ROWS, _COLUMNS, _DRAWS = 0, 1 << 29, 1 << 30
_MOST_DRAWS = 1024
_FRACTION_BITS = 23  # with the half that is added: what float32 holds exactly below 1


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed of its own for every use, e.g. ``derive_seed(0, "step", 12)``; below 2⁶³."""
    return int.from_bytes(_digest(seed, *parts)) >> 1


def sample_keys(samples: Iterable[int], seed: int, *parts: int | str) -> Tensor:
    """The keys of some samples, e.g. ``sample_keys(range(8), 0, "step", 12)``.

    Args:
        samples: B numbers that name the samples, such as their places in the global batch.
        seed: Of everything.
        *parts: What the keys are for.

    Returns:
        ``[B, 2]`` int32, on the CPU.
    """
    keys = b"".join(_digest(seed, *parts, sample) for sample in samples)
    if not keys:
        return torch.empty(0, 2, dtype=torch.int32)
    return torch.frombuffer(bytearray(keys), dtype=torch.int32).view(-1, 2)


def fresh_keys(batch_size: int, device: torch.device) -> Tensor:
    """Keys ``[batch_size, 2]`` int32 from torch's global generator."""
    return torch.randint(-(2**31), 2**31, (batch_size, 2), dtype=torch.int32, device=device)


class Noise:
    """The draws of one forward pass of a batch.

    Args:
        keys: One key per sample, ``[B, 2]`` int32, from `sample_keys` or `fresh_keys`.

    Raises:
        TypeError: If `keys` has another dtype.
        ValueError: If `keys` has another shape.
    """

    def __init__(self, keys: Tensor) -> None:
        if keys.dtype != torch.int32:
            raise TypeError(f"keys must be torch.int32; got {keys.dtype}")
        if keys.ndim != 2 or keys.shape[1] != 2:
            raise ValueError(f"keys must have shape (B, 2); got {tuple(keys.shape)}")
        self.keys = keys
        self.num_draws = 0
        self.draw_hash = self._hash_of(_DRAWS, _MOST_DRAWS)
        self.places: dict[tuple[int, int], Tensor] = {}

    def draw(self, num_rows: int, num_columns: int) -> Draw:
        """The next draw: one table of ``num_rows × num_columns`` numbers for each sample."""
        if self.num_draws == _MOST_DRAWS:
            raise RuntimeError(f"a Noise has {_MOST_DRAWS} draws, and all have been made")
        number = self.num_draws
        self.num_draws += 1
        rows = self._places(_ROWS, num_rows) ^ self.draw_hash[:, number : number + 1]
        return Draw(rows.unsqueeze(2), self._places(_COLUMNS, num_columns).unsqueeze(1))

    def _places(self, kind: int, count: int) -> Tensor:
        if (kind, count) not in self.places:
            self.places[kind, count] = self._hash_of(kind, count)
        return self.places[kind, count]

    def _hash_of(self, kind: int, count: int) -> Tensor:
        """Hashes of `count` numbers, distinct for each sample, ``[B, count]``."""
        numbers = torch.arange(kind, kind + count, dtype=torch.int32, device=self.keys.device)
        return _keyed_hash(numbers, self.keys[:, :1], self.keys[:, 1:])

    def normal(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers, ``[B, rows, columns]``; rounded at their end alone."""
        wide = _wide(dtype)
        radius = self.draw(rows, columns).exponential(wide).mul(2).sqrt()
        angle = self.draw(rows, columns).uniform(wide).mul(2 * math.pi)
        return (radius * angle.cos()).to(dtype)

    def dropout(self, x: Tensor, p: float) -> Tensor:
        """Zeroes entries of ``[B, rows, columns]`` with probability `p` and scales up the others."""
        dropped = self.draw(x.shape[1], x.shape[2]).drop(p)
        return (x * (1 / (1 - p))).masked_fill(dropped, 0)


@dataclass(frozen=True)
class Draw:
    """A table of random numbers per sample that is computed where it is asked for.

    Attributes:
        rows: Hash of every row and the draw, ``[B, R, 1]`` int32.
        columns: Hash of every column, ``[B, 1, C]`` int32.
    """

    rows: Tensor
    columns: Tensor

    def bits(self) -> Tensor:
        """Uniform int32, ``[B, R, C]``."""
        x = self.rows ^ self.columns
        scratch = torch.empty_like(x)
        _shift_xor(x, 16, scratch).mul_(_signed(0x7FEB352D))
        _shift_xor(x, 15, scratch).mul_(_signed(0x846CA68B))
        return _shift_xor(x, 16, scratch)

    def uniform(self, dtype: torch.dtype) -> Tensor:
        """Uniform on (0, 1), both ends excluded, ``[B, R, C]``; float32 or float64.

        Raises:
            TypeError: If the dtype is another: 16 bits cannot hold the numbers next to 0 or 1.
        """
        if dtype != _wide(dtype):
            raise TypeError(f"dtype must be float32 or float64; got {dtype}")
        if dtype == torch.float32 and _fuses(self.rows):
            table: Tensor = _tables().uniform_table(self.rows, self.columns)
            return table
        numbers = self.bits().bitwise_and_((1 << _FRACTION_BITS) - 1).to(dtype)
        return numbers.add_(0.5).mul_(2.0**-_FRACTION_BITS)

    def exponential(self, dtype: torch.dtype) -> Tensor:
        """Exponential of rate 1, ``[B, R, C]``."""
        return self.uniform(_wide(dtype)).log_().neg_().to(dtype)

    def gumbel(self, dtype: torch.dtype) -> Tensor:
        """Standard Gumbel, ``[B, R, C]``."""
        return self.exponential(_wide(dtype)).log_().neg_().to(dtype)

    def drop(self, p: float) -> Tensor:
        """True with probability `p` (to within 2⁻³²), ``[B, R, C]`` bool."""
        limit = round(p * 2**32) - 2**31
        if _fuses(self.rows):
            table: Tensor = _tables().drop_table(self.rows, self.columns, limit)
            return table
        return self.bits() < limit


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers are made in that are asked for in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def _fuses(hashes: Tensor) -> bool:
    """Whether one kernel makes a table: a compiler would rather see the arithmetic, and fuses it too."""
    return hashes.is_cuda and not torch.compiler.is_compiling() and why_not_here() is None


def _tables() -> ModuleType:
    from fastslots_kernels.fused import tables  # noqa: PLC0415 - imports triton

    return tables


def _keyed_hash(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Hashes int32 under 64 bits of key."""
    x = x ^ first
    scratch = torch.empty_like(x)
    _shift_xor(x, 17, scratch).mul_(_signed(0xED5AD4BB))
    _shift_xor(x, 11, scratch).bitwise_xor_(second).mul_(_signed(0xAC4C1B51))
    _shift_xor(x, 15, scratch).mul_(_signed(0x31848BAB))
    return _shift_xor(x, 14, scratch)


def _shift_xor(x: Tensor, shift: int, scratch: Tensor) -> Tensor:
    """``x ^= x >> shift``, in place; torch's shift of signed numbers copies the sign, hence the mask."""
    if transforms_active():  # which know no given memory
        return x.bitwise_xor_((x >> shift) & ((1 << (32 - shift)) - 1))
    torch.bitwise_right_shift(x, shift, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))


def _signed(constant: int) -> int:
    """The int32 of the same bits."""
    return constant - (1 << 32) if constant >= 1 << 31 else constant


def _digest(*parts: int | str) -> bytes:
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
