"""Which derivatives the fast forms have: first-order ones in reverse mode. Others are refused, not wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

ADVICE = 'use backend="reference", which has them'

_Gradients = tuple[Any, ...]  # tensors, None, and lists of these


def refuse_transforms(what: str, tensors: Iterable[Tensor]) -> None:
    """Raises where forward-mode derivatives or transforms of ``torch.func`` are being taken.

    Kernels and operations on given memory would drop tangents, and results with them, without a word.

    Args:
        what: Refuses, for the message.
        tensors: What is computed on.

    Raises:
        NotImplementedError: If a transform is active, or a tensor has a tangent.
    """
    if transforms_active():
        raise NotImplementedError(
            f"{what} has no torch.func transforms (grad, jvp, vmap): {ADVICE}"
        )
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(f"{what} has no forward-mode derivatives: {ADVICE}")


def transforms_active() -> bool:
    """Whether a transform of ``torch.func`` is being taken."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing: programs keep operations, and not the backward of a node of ours.

    `torch.compiler.is_exporting` says so within ``torch.compile``, too, in PyTorch 2.11.
    """
    return torch.compiler._is_exporting_flag


# The compiler asks while it traces, and traces again when the answer changes; see `fused.limits`.
transforms_active._dynamo_marked_constant = True  # type: ignore[attr-defined]


def first_order(what: str) -> Callable[[Callable[..., _Gradients]], Callable[..., _Gradients]]:
    """Decorates the backward of an autograd.Function whose gradients cannot be differentiated again.

    With ``create_graph=True`` they are tracked all the same, and who differentiates them gets an error.
    (`torch.autograd.function.once_differentiable` returns constants where the incoming gradient is one,
    as that of every loss: whatever is made of them is cut off in silence.)

    Args:
        what: Refuses, for the message.
    """

    def decorate(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> _Gradients:
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch.no_grad():
                gradients = backward(ctx, *grads)
            # They depend on these, which is all that the graph needs to know.
            return _tracked(what, gradients, (*ctx.saved_tensors, *grads))

        return once

    return decorate


def empty_function_of(*tensors: Tensor) -> Tensor:
    """A tensor without entries that depends on others, for a backward that saves none of them.

    Saved, it lets `first_order` know what the gradients depend on, and costs neither memory nor a launch.
    """
    return torch.cat([tensor[:0].reshape(-1) for tensor in tensors])


def _tracked(what: str, gradients: _Gradients, sources: Iterable[Tensor | None]) -> _Gradients:
    """The gradients as functions of `sources`."""
    leaves, structure = tree_flatten(gradients)
    made = [leaf for leaf in leaves if leaf is not None]
    needed = [source for source in sources if source is not None and source.requires_grad]
    tracked = iter(_Once.apply(what, len(made), *made, *needed))
    tree: _Gradients = tree_unflatten(
        [None if leaf is None else next(tracked) for leaf in leaves], structure
    )
    return tree


class _Once(torch.autograd.Function):
    """The first tensors as they are; their gradient raises."""

    @staticmethod
    def forward(ctx: Any, what: str, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.what = what
        return tuple(tensor.view_as(tensor) for tensor in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(f"{ctx.what} has no second-order gradients: {ADVICE}")
