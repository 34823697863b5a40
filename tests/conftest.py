"""Settings and data for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# The tensors of the tests are small: a second thread costs more than it brings, and far more where other
# processes are busy. NumPy and PyTorch read this when they are imported, here and in what tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_configure(config: pytest.Config) -> None:
    """All tests but those of the GPU run the kernels in Triton's interpreter, chosen when it is imported."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets PyTorch's default dtype for one test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of twenty small images."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        pixels = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return folder
