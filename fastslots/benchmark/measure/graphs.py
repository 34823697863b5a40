"""Work as CUDA graphs: a forward and its backward, and the time of any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

WARM_UP = 3  # compilers and libraries set themselves up in the first runs

Tensors: TypeAlias = tuple[Tensor | None, ...]
_Result = TypeVar("_Result")


class Graphs:
    """Two CUDA graphs that read the tensors of the capture and are replayed in turn.

    Graphs of one pool share memory, so the results of one are valid until another is replayed.

    Args:
        forward: Run on a side stream to warm up, then captured.
        backward: The same, called with the result of `forward`; None: there is none.
        pool: Of ``torch.cuda.graph_pool_handle()``.
        device: The CUDA device of all tensors.

    Raises:
        RuntimeError: If what they do cannot be captured.
    """

    def __init__(
        self,
        forward: Callable[[], Any],
        backward: Callable[[Any], Tensors] | None,
        pool: Any,
        device: torch.device,
    ) -> None:
        self._backward: torch.cuda.CUDAGraph | None = None
        self._grads: Tensors = ()
        with torch.cuda.device(device):
            with side_stream():
                for _ in range(WARM_UP):
                    warm = forward()
                    if backward is not None:
                        backward(warm)
                    del warm
            self._forward, outputs = capture(forward, pool)
            if backward is not None:
                self._backward, self._grads = capture(lambda: backward(outputs), pool)
        self._outputs: Tensors = tuple(t if t is None else t.detach() for t in outputs)

    def forward(self) -> Tensors:
        """Replays the forward; empty after `forget`."""
        self._forward.replay()
        return self._outputs

    def backward(self) -> Tensors:
        """Replays the backward of the forward just replayed; empty after `forget`."""
        if self._backward is not None:
            self._backward.replay()
        return self._grads

    def forget(self) -> None:
        """Gives the memory of the results back to the pool, for graphs that are captured later."""
        self._outputs = self._grads = ()


def capture(work: Callable[[], _Result], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """Captures work that has run before, on the current device; returns the graph, and what it returned.

    Raises:
        RuntimeError: If something in it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = work()
    return graph, result


def replay_us(graph: torch.cuda.CUDAGraph, rounds: int, replays: int = 1) -> float:
    """Time of a warm replay in µs: the median over rounds of some replays each."""
    graph.replay()
    found = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        found.append(1e3 * start.elapsed_time(end) / replays)
    return float(median(found))


@contextmanager
def side_stream(device: torch.device | None = None) -> Iterator[None]:
    """A stream beside the present one, where what comes before a capture should run.

    Args:
        device: Of CUDA. Default: the current one.
    """
    present, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(present)
    with torch.cuda.stream(side):
        yield
    present.wait_stream(side)
