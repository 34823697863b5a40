"""The layers of a module: read as tensors, where that says all that they compute, or called."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Layers(Protocol):
    """What one step computes with; a module with the names of the paper's Figure 2 is one."""

    def norm_inputs(self, x: Tensor, /) -> Tensor:
        """``[B, N, C]`` normalised."""
        ...

    def norm_slots(self, x: Tensor, /) -> Tensor:
        """``[B, K, D]`` normalised."""
        ...

    def norm_mlp(self, x: Tensor, /) -> Tensor:
        """``[B, K, D]`` normalised."""
        ...

    def project_q(self, x: Tensor, /) -> Tensor:
        """``[B, K, D]`` of ``[B, K, D]``."""
        ...

    def project_k(self, x: Tensor, /) -> Tensor:
        """``[B, N, D]`` of ``[B, N, C]``."""
        ...

    def project_v(self, x: Tensor, /) -> Tensor:
        """``[B, N, D]`` of ``[B, N, C]``."""
        ...

    def gru(self, x: Tensor, hidden: Tensor, /) -> Tensor:
        """The next hidden state ``[B K, D]`` for updates ``[B K, D]``."""
        ...

    def mlp(self, x: Tensor, /) -> Tensor:
        """``[B, K, D]`` of ``[B, K, D]``."""
        ...


def why_called(layer: Any, kind: type[nn.Module], *, bias: bool | None = None) -> str | None:
    """Why a layer must be called, or None if it computes what a `kind` does with its tensors.

    Parametrizations (``torch.nn.utils.parametrizations``) need no call: they act where a tensor is read.
    Hooks of all modules (``register_module_forward_hook``), which tools trace with, are not looked at.

    Args:
        layer: A module.
        kind: What it should be.
        bias: Whether it should have one. Default: either.
    """
    if type(layer).forward is not kind.forward or "forward" in layer.__dict__:
        return f"is a {type(layer).__name__} with a forward of its own"
    if type(layer).__call__ is not kind.__call__:
        return f"is a {type(layer).__name__} with a __call__ of its own"
    if layer._forward_pre_hooks or layer._forward_hooks:
        return "has forward hooks"
    if layer._backward_pre_hooks or layer._backward_hooks:
        return "has backward hooks"
    if bias is None:
        return None
    found = parameter_of(layer, "bias")
    has_bias = found is not None and found is not False  # a GRU cell's is True or False
    if has_bias == bias:
        return None
    return "has a bias" if has_bias else "has no bias"


def parameter_of(layer: Any, name: str) -> Any:
    """A parameter of a layer, also a parametrized one, or None."""
    if not hasattr(type(layer), name):  # as a property, which would come first
        found = getattr(layer, "_parameters", {}).get(
            name
        )  # where most are, found ten times as fast
        if found is not None:
            return found
    return getattr(layer, name, None)


def why_module_called(module: nn.Module) -> str | None:
    """The layer of a slot-attention module that must be called, and why, or None if all can be read."""
    for name, kind, bias in _KINDS:
        layer: Any = module._modules.get(name)
        if layer is None:
            continue  # reading it will say so
        why = why_called(layer, kind, bias=bias)
        if why is None and kind is nn.Sequential:
            why = _why_mlp_called(layer)
        if why is not None:
            return f"{name} {why}"
    return None


def _why_mlp_called(mlp: Any) -> str | None:
    if len(mlp) != 3:
        return f"has {len(mlp)} layers in place of 3"
    for index, (kind, bias) in enumerate(_MLP):
        why = why_called(mlp[index], kind, bias=bias)
        if why is not None:
            return f"has a layer {index} that {why}"
    return None


_KINDS: tuple[tuple[str, type[nn.Module], bool | None], ...] = (
    ("norm_inputs", nn.LayerNorm, True),
    ("norm_slots", nn.LayerNorm, True),
    ("norm_mlp", nn.LayerNorm, True),
    ("project_q", nn.Linear, False),
    ("project_k", nn.Linear, False),
    ("project_v", nn.Linear, False),
    ("gru", nn.GRUCell, True),
    ("mlp", nn.Sequential, None),
)
_MLP: tuple[tuple[type[nn.Module], bool | None], ...] = (
    (nn.Linear, True),
    (nn.ReLU, None),
    (nn.Linear, True),
)
