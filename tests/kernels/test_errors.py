"""Bad arguments: every message names the argument, the rule and the value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastslots_kernels import SlotAttentionWeights, resolve_backend, slot_attention
from tests.kernels.cases import Case, make_problem


def call(**changes: Any) -> Any:
    problem = make_problem(Case(), torch.float32)
    arguments: dict[str, Any] = {
        "inputs": problem.inputs,
        "slots": problem.slots,
        "weights": problem.weights,
        "num_iterations": 1,
    }
    return slot_attention(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.zeros(2, 13)}, r"inputs must have shape \[B, N, C\]; got \[2, 13\]"),
        ({"slots": torch.zeros(3, 8)}, r"slots must have shape \[B, K, D\]; got \[3, 8\]"),
        (
            {"inputs": torch.zeros(2, 13, 9)},
            "inputs must have width 10, that of the weights; got 9",
        ),
        ({"slots": torch.zeros(2, 3, 7)}, "slots must have width 8, that of the weights; got 7"),
        ({"slots": torch.zeros(3, 3, 8)}, "slots must have the batch size of inputs, 2; got 3"),
        ({"slots": torch.zeros(2, 0, 8)}, "slots must hold at least one slot; got 0"),
        (
            {"slots": torch.zeros(2, 3, 8, dtype=torch.float64)},
            "slots must have the dtype of inputs, torch.float32; got torch.float64",
        ),
        (
            {"slots": torch.zeros(2, 3, 8, device="meta")},
            "slots must be on the device of inputs, cpu; got meta",
        ),
        (
            {"mask": torch.ones(2, 12, dtype=torch.bool)},
            r"mask must have shape \[2, 13\]; got \[2, 12\]",
        ),
        (
            {"mask": torch.ones(2, 13, dtype=torch.bool, device="meta")},
            "mask must be on the device of inputs, cpu; got meta",
        ),
        ({"num_heads": 3}, "the width of slots must be a multiple of num_heads 3; got 8"),
        ({"num_heads": 0}, "num_heads must be at least 1; got 0"),
        (
            {"num_iterations": -1},
            "num_iterations must be at least 0 with gradient='neumann'; got -1",
        ),
        (
            {"num_iterations": 0, "gradient": "unrolled"},
            "num_iterations must be at least 1 with gradient='unrolled'; got 0",
        ),
        ({"neumann_terms": 0}, "neumann_terms must be at least 1; got 0"),
        ({"gradient": "anderson"}, r"gradient must be one of .*; got 'anderson'"),
        ({"init_gradient": "bo"}, r"init_gradient must be one of .*; got 'bo'"),
        ({"tolerance": 0.0}, r"tolerance must be above 0; got 0.0"),
        ({"epsilon": -1e-8}, r"epsilon must be at least 0 and below 1e\+30; got -1e-08"),
        ({"backend": "cuda"}, r"backend must be one of .*; got 'cuda'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_broken_rule_is_named_with_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.zeros(2, 13, 10, dtype=torch.int64)}, "inputs must be float16.*int64"),
        ({"mask": torch.ones(2, 13)}, "mask must be a bool tensor; got torch.float32"),
        ({"inputs": None}, "inputs must be a tensor; got NoneType"),
        ({"slots": [[1.0]]}, "slots must be a tensor; got list"),
        ({"mask": [[True]]}, "mask must be a tensor; got list"),
        ({"weights": {}}, "weights must be a SlotAttentionWeights; got dict"),
        ({"num_heads": 2.0}, "num_heads must be an int; got 2.0"),
        ({"epsilon": "a"}, "epsilon must be a number; got 'a'"),
        ({"tolerance": True}, "tolerance must be a number; got True"),
        ({"num_iterations": 2.0}, "num_iterations must be an int; got 2.0"),
        ({"neumann_terms": True}, "neumann_terms must be an int; got True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(**changes)


def test_a_backend_that_cannot_run_says_why() -> None:
    slots, weights = torch.zeros(2, 70, 8), make_problem(Case(), torch.float32).module
    with pytest.raises(RuntimeError, match=r"backend 'triton' cannot run: .*at most 64; got 70"):
        call(slots=slots, weights=SlotAttentionWeights.from_module(weights), backend="triton")


def test_backends_asked_for_by_name_are_taken() -> None:
    for backend in ("torch", "reference"):
        assert resolve_backend(backend) == (backend, "asked for by name")


def test_a_misshaped_weight_is_named() -> None:
    module = make_problem(Case()).module
    module.project_v = nn.Linear(9, 8, bias=False)
    with pytest.raises(
        ValueError, match=r"weights.project_v must have shape \(8, 10\).*got \(8, 9\)"
    ):
        call(weights=SlotAttentionWeights.from_module(module.float()))


def test_weights_of_mixed_dtypes_are_named() -> None:
    module = make_problem(Case(), torch.float32).module
    module.norm_mlp.double()
    with pytest.raises(ValueError, match=r"weights.norm_mlp_weight must have the dtype .*float64"):
        call(weights=SlotAttentionWeights.from_module(module))


def test_a_module_without_a_parameter_is_named() -> None:
    module = make_problem(Case()).module
    del module.gru
    with pytest.raises(
        ValueError, match=r"must have the parameter 'gru.weight_ih'; FigureTwo has none"
    ):
        SlotAttentionWeights.from_module(module)


def test_a_projection_with_a_bias_is_refused() -> None:
    module = make_problem(Case()).module
    module.project_k = nn.Linear(10, 8)
    with pytest.raises(ValueError, match="a FigureTwo whose project_k has a bias"):
        SlotAttentionWeights.from_module(module)
