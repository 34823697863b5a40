"""Muon for any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastslots.models.precision import fast_precision


class Muon(torch.optim.Muon):
    """PyTorch's Muon, in float32 on a CPU without instructions for bfloat16; no decay of the weights.

    PyTorch orthogonalises in bfloat16 everywhere. Such a CPU multiplies matrices ten times more slowly in it
    than in float32, and a small model's step is then mostly that.

    Args:
        groups: Parameters of two dimensions, in groups whose learning rate is set before a step.

    Source:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes the weights; as PyTorch's."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if fast_precision() == "bf16" or any(p.device.type != "cpu" for p in parameters):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, parameter.grad, group)
        return loss

    def _change(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        average = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(average, group["momentum"]) if group["nesterov"] else average
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """A matrix ``U S V'`` with its singular values brought near 1: about ``U V'``, in float32.

    From ``X = M / ‖M‖``, so many times ``X ← a X + (b A + c A²) X`` with ``A = X X'``.

    Args:
        matrix: M, ``[m, n]``.
        coefficients: a, b, c.
        steps: Of this Newton-Schulz iteration.
        eps: The least that ``‖M‖`` is taken for.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
