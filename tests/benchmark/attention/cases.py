"""What the tests of slot attention's benchmark measure."""

from __future__ import annotations

import pytest
import torch

from fastslots.benchmark import Case, Provider

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = Case("tiny", 2, 10, 8, 3, 8, 8, iterations=(1, 2))
REFERENCE, TORCH = (Provider(backend, "implicit") for backend in ("reference", "torch"))
NO_GRAD = [Provider(backend, "no-grad") for backend in ("reference", "torch")]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
