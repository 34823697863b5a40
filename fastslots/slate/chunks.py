"""Work in parts: tables that are as wide as the vocabulary, or as an image squared, are never made whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Entries of a part. On a CPU a part stays in the caches, which is also what makes it fast. A GPU needs
# parts that fill it, and so does a compiler, which would write out every part's code.
_CPU_ENTRIES = 2**18
_LARGE_ENTRIES = 2**26


def parts(
    batch_size: int, num_rows: int, num_columns: int, device: torch.device
) -> Iterator[tuple[slice, slice]]:
    """Cuts a table ``[batch_size, num_rows, num_columns]`` into samples and rows of bearable size.

    Args:
        batch_size: Samples.
        num_rows: Rows of a sample.
        num_columns: Entries of a row.
        device: Where it is computed.

    Yields:
        Samples and rows of a part: several whole samples, or rows of one.
    """
    is_large = device.type != "cpu" or torch.compiler.is_compiling()
    rows = max(1, (_LARGE_ENTRIES if is_large else _CPU_ENTRIES) // max(1, num_columns))
    if rows >= num_rows:
        samples = rows // max(1, num_rows)
        for first in range(0, batch_size, samples):
            yield slice(first, first + samples), slice(0, num_rows)
        return
    for sample in range(batch_size):
        for first in range(0, num_rows, rows):
            yield slice(sample, sample + 1), slice(first, min(first + rows, num_rows))
