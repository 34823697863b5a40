"""Slot attention as a module."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from fastslots.initialization import gru_cell, linear
from fastslots_kernels import resolve_backend, slot_attention
from fastslots_kernels.api import check_options
from fastslots_kernels.checks import check_choice, check_count, check_multiple
from fastslots_kernels.derivatives import is_exporting

SOLVERS = ("iteration", "broyden")
_log = logging.getLogger("fastslots")


class SlotAttention(nn.Module):
    """Groups inputs into slots by iterative refinement, trained as a fixed point (the default) or unrolled.

    Parameters are named and initialised as in the paper's Figure 2 and the public SLATE code, so that
    their state dicts load with ``strict=True``. All options are plain attributes and may be changed
    between calls.

    The step is that of the public SLATE code: keys are scaled by ``(slot_size / num_heads) ** -0.5``, the
    softmax runs over heads and slots together, and epsilon is added to the softmax before it is divided
    by its sum over inputs. (Figure 2 prints epsilon in the denominator alone.)

    Args:
        num_iterations: Iterations before the tracked step, or, with ``gradient="unrolled"``, tracked steps.
        num_slots: The model's usual number of slots; any number may be given at call time.
        input_size: Width of the inputs, C.
        slot_size: Width of the slots, D.
        mlp_hidden_size: Hidden width of the MLP.
        num_heads: H, which divides ``slot_size``.
        epsilon: Added to the softmax (dimensionless).
        solver: How the fixed point is found: ``"iteration"``. (``"broyden"`` is not available yet.)
        gradient: ``"neumann"``: `num_iterations` steps without a graph, then one tracked step (implicit
            slot attention; O(1) memory and backward time). ``"unrolled"``: all steps tracked.
            (``"broyden"`` is not available yet.)
        neumann_terms: k in the gradient ``Σ_{i<k} (Jᵀ)ⁱ g`` at the fixed point; 1 is the paper's method.
        init_gradient: ``"none"``, or ``"straight-through"``: the initial slots learn too (BO-QSA).
        tolerance: Stop early once every image's relative residual ``‖f(s) - s‖ / ‖f(s)‖`` is below it.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"``; see `resolve_backend`. A program of
            ``torch.export`` computes with ``"reference"`` where a call would with ``"torch"``.

    Attributes:
        iterations_used: After a call, the iterations it took: an int64 scalar tensor, without the tracked
            step that follows them. None before the first call; a call that is exported does not set it.

    Raises:
        ValueError: If an argument breaks a rule above.
        TypeError: If an argument has the wrong type.
        RuntimeError: If a solver, gradient or backend asked for by name is not available.

    Source:
        Chang, Griffiths & Levine 2022, Figure 2; Locatello et al. 2020, Algorithm 1.
    """

    def __init__(
        self,
        num_iterations: int,
        num_slots: int,
        input_size: int,
        slot_size: int,
        mlp_hidden_size: int,
        num_heads: int = 1,
        epsilon: float = 1e-8,
        *,
        solver: str = "iteration",
        gradient: str = "neumann",
        neumann_terms: int = 1,
        init_gradient: str = "none",
        tolerance: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.num_slots = num_slots = check_count("num_slots", num_slots, 1)
        self.input_size = input_size = check_count("input_size", input_size, 1)
        self.slot_size = slot_size = check_count("slot_size", slot_size, 1)
        self.mlp_hidden_size = check_count("mlp_hidden_size", mlp_hidden_size, 1)
        self.num_heads = num_heads = check_count("num_heads", num_heads, 1)
        check_multiple("slot_size", slot_size, "num_heads", num_heads)
        self.num_iterations = num_iterations
        self.epsilon = epsilon
        self.solver = solver
        self.gradient = gradient
        self.neumann_terms = neumann_terms
        self.init_gradient = init_gradient
        self.tolerance = tolerance
        self.backend = backend
        self.iterations_used: Tensor | None = None
        self._check_options(num_iterations)
        resolve_backend(backend)

        self.norm_inputs = nn.LayerNorm(input_size)
        self.norm_slots = nn.LayerNorm(slot_size)
        self.norm_mlp = nn.LayerNorm(slot_size)
        self.project_q = linear(slot_size, slot_size, bias=False)
        self.project_k = linear(input_size, slot_size, bias=False)
        self.project_v = linear(input_size, slot_size, bias=False)
        self.gru = gru_cell(slot_size, slot_size)
        self.mlp = nn.Sequential(
            linear(slot_size, self.mlp_hidden_size, weight_init="kaiming"),
            nn.ReLU(),
            linear(self.mlp_hidden_size, slot_size),
        )

    def forward(
        self,
        inputs: Tensor,
        slots: Tensor,
        num_iterations: int | None = None,
        mask: Tensor | None = None,
        return_attn: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Refines the initial guess.

        Args:
            inputs: ``[B, N, input_size]``; float16, bfloat16, float32 or float64.
            slots: The initial guess, ``[B, K, slot_size]``, for any K.
            num_iterations: Default: the module's.
            mask: True where an input is valid, ``[B, N]`` bool. A masked input may hold anything; its
                attention and its gradient are exactly 0.
            return_attn: Whether to return the attention.

        Where `slots` require a gradient and the options give them none, a warning says so once per process.

        Returns:
            The slots ``[B, K, slot_size]``, and the attention ``[B, N, K]`` or None: the softmax over the
            slots of the last step, summed over heads; differentiable.

        Raises:
            ValueError: If shapes, dtypes, devices or options break a rule, naming it and the value.
            TypeError: If a tensor or an option has the wrong type.
        """
        if num_iterations is None:
            num_iterations = self.num_iterations
        self._check_options(num_iterations)
        new, attn, used = slot_attention(
            inputs,
            slots,
            self,
            num_iterations=num_iterations,
            num_heads=self.num_heads,
            epsilon=self.epsilon,
            mask=mask,
            gradient=self.gradient,
            neumann_terms=self.neumann_terms,
            init_gradient=self.init_gradient,
            tolerance=self.tolerance,
            return_attn=return_attn,
            backend=self.backend,
        )
        if not is_exporting():  # a program returns what it returns, and sets nothing
            self.iterations_used = used
        if slots.requires_grad and torch.is_grad_enabled() and not self.init_learns:
            _warn_unreached()
        return new, attn

    @property
    def init_learns(self) -> bool:
        """Whether the initial slots receive a gradient under the present options."""
        return self.gradient == "unrolled" or self.init_gradient == "straight-through"

    def _check_options(self, num_iterations: int) -> None:
        check_choice("solver", self.solver, SOLVERS)
        for name in ("solver", "gradient"):
            if getattr(self, name) == "broyden":
                raise RuntimeError(
                    f"{name}='broyden' is not available in this version of fastslots; "
                    f"use {'iteration' if name == 'solver' else 'neumann'!r}"
                )
        check_options(
            num_iterations,
            self.gradient,
            self.neumann_terms,
            self.init_gradient,
            self.tolerance,
            self.epsilon,
        )

    def extra_repr(self) -> str:
        """The sizes and options, for ``print(module)``."""
        return (
            f"{self.input_size}, {self.slot_size}, num_slots={self.num_slots}, "
            f"num_iterations={self.num_iterations}, num_heads={self.num_heads}, "
            f"gradient={self.gradient!r}, backend={self.backend!r}"
        )


def _warn_unreached() -> None:
    _say_unreached()


# While torch.compile traces, not in what it compiles; see `fastslots_kernels.fused.limits`.
_warn_unreached._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _say_unreached() -> None:
    _log.warning(
        "the initial slots require a gradient, and an implicit gradient does not reach them: what makes them "
        "will not learn, and DistributedDataParallel will fail at its second step; freeze it "
        '(SlotInit.freeze()), or take init_gradient="straight-through" or gradient="unrolled"'
    )
