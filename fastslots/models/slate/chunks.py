"""Work in parts: tables as wide as the vocabulary, or as an image squared, are made piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastslots_kernels.derivatives import is_exporting

# Entries of a part. On a CPU a part stays in the caches, which is also what makes it fast. On a GPU a part
# costs dozens of launches, which smaller tables would not outlast; a compiler writes out every part's code.
_CPU_ENTRIES = 2**20
_GPU_ENTRIES = 2**26


class Part(NamedTuple):
    """Some rows of some samples, as bounds: torch 2.11 cannot compile slices that are handed around."""

    first_sample: int
    last_sample: int
    first_row: int
    last_row: int

    def of(self, table: Tensor) -> Tensor:
        """The part of ``[B, R, ...]``, a view."""
        return table[self.first_sample : self.last_sample, self.first_row : self.last_row]

    def samples_of(self, table: Tensor) -> Tensor:
        """The part's samples of ``[B, ...]``, a view."""
        return table[self.first_sample : self.last_sample]


def parts(batch_size: int, num_rows: int, num_columns: int, device: torch.device) -> Iterator[Part]:
    """Cuts a table ``[batch_size, num_rows, num_columns]`` into samples and rows of bearable size.

    Args:
        batch_size: Samples.
        num_rows: Rows of a sample.
        num_columns: Entries of a row.
        device: Where it is computed.

    Yields:
        Several whole samples, or rows of one. All of the table for ``torch.export``, whose programs cannot
        have a number of parts that depends on the batch.
    """
    if is_exporting():
        yield Part(0, batch_size, 0, num_rows)
        return
    on_cpu = device.type == "cpu" and not torch.compiler.is_compiling()
    entries = _CPU_ENTRIES if on_cpu else _GPU_ENTRIES
    rows = max(1, entries // max(1, num_columns))
    if rows >= num_rows:
        samples = rows // max(1, num_rows)
        for first in range(0, batch_size, samples):
            yield Part(first, min(first + samples, batch_size), 0, num_rows)
        return
    for sample in range(batch_size):
        for first in range(0, num_rows, rows):
            yield Part(sample, sample + 1, first, min(first + rows, num_rows))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds ``a @ b`` to a matrix whose dtype may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def whole_output(output: Tensor) -> Tensor:
    """What an autograd.Function may return of an output that it wrote part by part.

    The compiler of torch 2.11 loses the gradient of an output that was written in place. Compiled, the copy
    costs nothing.
    """
    return output.clone() if torch.compiler.is_compiling() else output
