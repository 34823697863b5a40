"""One training step of the fused kernels, between marks for a profiler: run by `counters`."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from fastslots.benchmark import Call, Problem, Provider
from fastslots.benchmark.measure.precision import matmul_precision
from gpu.timing.shapes import case_of


def main(shape: str) -> None:
    """Warms up, then runs one iteration, the tracked step and its backward between the marks."""
    device = torch.device("cuda")
    case = replace(case_of(shape, tiny=False), iterations=(1,))
    call = Call(Provider("triton", "implicit"), Problem.make(case, device), 1)
    with matmul_precision(case.precision):
        call.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1])
