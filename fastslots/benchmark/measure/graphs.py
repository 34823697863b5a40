"""A forward and its backward as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

WARM_UP = 3  # compilers and libraries set themselves up in the first runs

Tensors: TypeAlias = tuple[Tensor | None, ...]


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
        self._forward = torch.cuda.CUDAGraph()
        self._backward: torch.cuda.CUDAGraph | None = None
        self._grads: Tensors = ()
        with torch.cuda.device(device):
            _warm_up(forward, backward)
            with torch.cuda.graph(self._forward, pool=pool):
                outputs = forward()
            if backward is not None:
                self._backward = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._backward, pool=pool):
                    self._grads = backward(outputs)
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


def _warm_up(forward: Callable[[], Any], backward: Callable[[Any], Tensors] | None) -> None:
    """Runs both on a side stream of the current device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            warm = forward()
            if backward is not None:
                backward(warm)
            del warm
    torch.cuda.current_stream().wait_stream(side)
