"""The modules SlotAttention and SlotInit; the mathematics is tested in tests/kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastslots import SlotAttention, SlotInit
from fastslots.slot_attention import _say_unreached
from fastslots.slot_init import _say_frozen


def make_module(**options: Any) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(3, 5, 12, 8, 16, **options)


def test_parameters_are_named_as_in_the_paper() -> None:
    norms = [f"norm_{n}.{p}" for n in ("inputs", "slots", "mlp") for p in ("weight", "bias")]
    projections = [f"project_{p}.weight" for p in "qkv"]
    gru = [f"gru.{p}" for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    mlp = [f"mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")]
    assert set(make_module().state_dict()) == {*norms, *projections, *gru, *mlp}


def test_parameters_are_initialised_as_in_the_public_code() -> None:
    module = SlotAttention(3, 5, 300, 200, 400)
    for linear, bound in (
        (module.project_q, (6 / 400) ** 0.5),
        (module.project_k, (6 / 500) ** 0.5),
        (module.mlp[0], (6 / 200) ** 0.5),
        (module.mlp[2], (6 / 600) ** 0.5),
        (module.gru.weight_ih, (6 / 800) ** 0.5),
    ):
        largest = float(getattr(linear, "weight", linear).detach().abs().max())
        assert 0.98 * bound < largest <= bound
    hidden = module.gru.weight_hh.detach()
    torch.testing.assert_close(hidden.T @ hidden, torch.eye(200), atol=1e-4, rtol=0)
    biases = [p for n, p in module.named_parameters() if "bias" in n]
    assert all((bias == 0).all() for bias in biases)


def test_any_number_of_slots_and_iterations_may_be_given_at_call_time() -> None:
    module = make_module()
    slots, attn = module(torch.randn(2, 7, 12), torch.randn(2, 9, 8), num_iterations=4)
    assert (slots.shape, attn.shape) == ((2, 9, 8), (2, 7, 9))
    assert int(module.iterations_used) == 4


def test_attention_is_left_out_when_not_asked_for() -> None:
    module, inputs, slots = make_module(), torch.randn(2, 7, 12), torch.randn(2, 5, 8)
    with_attn, _ = module(inputs, slots)
    without, attn = module(inputs, slots, return_attn=False)
    assert attn is None
    torch.testing.assert_close(without, with_attn, rtol=0, atol=0)


def test_options_may_be_changed_between_calls() -> None:
    module, inputs = make_module(), torch.randn(2, 7, 12)
    slots = torch.randn(2, 5, 8, requires_grad=True)
    module(inputs, slots)[0].sum().backward()
    assert slots.grad is None
    module.gradient = "unrolled"
    module(inputs, slots)[0].sum().backward()
    assert slots.grad is not None


def test_every_parameter_learns_under_the_implicit_gradient() -> None:
    module = make_module(num_heads=2)
    slots, _ = module(torch.randn(2, 7, 12), torch.randn(2, 5, 8))
    slots.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({}, False),
        ({"gradient": "unrolled"}, True),
        ({"init_gradient": "straight-through"}, True),
    ],
)
def test_init_learns_tells_whether_a_gradient_reaches_the_initial_slots(
    options: dict[str, str], learns: bool
) -> None:
    module, init = make_module(**options), SlotInit(5, 8)
    module(torch.randn(2, 7, 12), init(2))[0].sum().backward()
    assert module.init_learns is learns
    assert (init.slot_mu.grad is not None) is learns


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_initial_slots_that_no_gradient_reaches_are_said_once(
    caplog: pytest.LogCaptureFixture, compiled: bool
) -> None:
    _say_unreached.cache_clear()

    def said() -> list[str]:
        return [record.message for record in caplog.records if record.name == "fastslots"]

    module, init, inputs = make_module(backend="torch"), SlotInit(5, 8), torch.randn(2, 7, 12)

    def call(inputs: Tensor) -> Tensor:
        return module(inputs, init(2))[0]

    if compiled:
        call = torch.compile(call, backend="eager", fullgraph=True)
    with caplog.at_level(logging.WARNING, "fastslots"):
        with torch.no_grad():
            call(inputs)
        module.init_gradient = "straight-through"
        call(inputs)
        assert not said()
        module.init_gradient = "none"
        for _ in range(2):
            call(inputs)
    (message,) = said()
    assert message.startswith("the initial slots require a gradient, and an implicit gradient")
    assert "SlotInit.freeze()" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_slots": 0}, "num_slots must be at least 1; got 0"),
        ({"mlp_hidden_size": -1}, "mlp_hidden_size must be at least 1; got -1"),
        ({"num_heads": 3}, "slot_size must be a multiple of num_heads 3; got 8"),
        ({"num_iterations": -1}, "num_iterations must be at least 0"),
        ({"solver": "anderson"}, "solver must be one of .*'anderson'"),
        ({"gradient": "bptt"}, "gradient must be one of .*'bptt'"),
        ({"backend": "cuda"}, "backend must be one of .*'cuda'"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    sizes = {
        "num_iterations": 3,
        "num_slots": 5,
        "input_size": 12,
        "slot_size": 8,
        "mlp_hidden_size": 16,
    }
    with pytest.raises(ValueError, match=message):
        SlotAttention(**(sizes | arguments))


@pytest.mark.parametrize("name", ["num_slots", "slot_size", "num_heads", "num_iterations"])
def test_a_size_that_is_no_int_is_named(name: str) -> None:
    sizes: dict[str, Any] = {
        "num_iterations": 3,
        "num_slots": 5,
        "input_size": 12,
        "slot_size": 8,
        "mlp_hidden_size": 16,
    }
    with pytest.raises(TypeError, match=f"{name} must be an int; got 2.5"):
        SlotAttention(**(sizes | {name: 2.5}))


@pytest.mark.parametrize("option", ["solver", "gradient"])
def test_broyden_is_refused_until_it_exists(option: str) -> None:
    with pytest.raises(RuntimeError, match=f"{option}='broyden' is not available"):
        make_module(**{option: "broyden"})


def test_an_option_broken_later_is_named_at_the_call() -> None:
    module = make_module()
    module.gradient = "bptt"
    with pytest.raises(ValueError, match="gradient must be one of"):
        module(torch.randn(2, 7, 12), torch.randn(2, 5, 8))


def test_gaussian_slots_share_one_mean_and_deviation() -> None:
    init = SlotInit(4, 3)
    init.slot_mu.data.fill_(2.0)
    init.slot_log_sigma.data.fill_(-1.0)
    slots = init(20_000, generator=torch.Generator().manual_seed(0))
    assert slots.shape == (20_000, 4, 3)
    torch.testing.assert_close(slots.mean((0, 1)), torch.full((3,), 2.0), atol=0.01, rtol=0)
    deviation = torch.full((3,), -1.0).exp()
    torch.testing.assert_close(slots.flatten(0, 1).std(0), deviation, atol=0.01, rtol=0)


def test_the_generator_decides_the_slots() -> None:
    init = SlotInit(4, 3)
    draws = [init(2, 6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == (2, 6, 3)
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    assert not torch.equal(draws[0], draws[2])


def test_learned_slots_are_the_same_in_every_image_and_learn() -> None:
    init = SlotInit(4, 3, "learned")
    slots = init(2)
    torch.testing.assert_close(slots[0], slots[1], rtol=0, atol=0)
    slots += 1  # they are the caller's own
    slots.sum().backward()
    assert (init.slot_queries.grad == 2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 3, "uniform"), "kind must be one of .*'uniform'"),
        ((0, 3), "num_slots must be at least 1; got 0"),
        ((4, 0), "slot_size must be at least 1; got 0"),
    ],
)
def test_bad_slot_init_arguments_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotInit(*arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("learned", (2, 5), "num_slots must be 4, the number of learned queries; got 5"),
        ("gaussian", (2, 0), "num_slots must be at least 1; got 0"),
        ("gaussian", (-1,), "batch_size must be at least 0; got -1"),
    ],
)
def test_bad_calls_of_slot_init_are_named(
    kind: str, arguments: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SlotInit(4, 3, kind)(*arguments)


def test_frozen_initial_slots_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_frozen.cache_clear()
    with caplog.at_level(logging.WARNING, "fastslots"):
        for _ in range(2):
            init = SlotInit(4, 3)
            init.freeze()
            assert not any(parameter.requires_grad for parameter in init.parameters())
    assert [record.message for record in caplog.records if "frozen" in record.message] == [
        "the gaussian initial slots are frozen at their initial values: an implicit gradient does not "
        'reach them (init_gradient="straight-through" or gradient="unrolled" would)'
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_module_is_made_in_any_default_dtype(
    dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    default_dtype(dtype)
    module, init = make_module(backend="torch"), SlotInit(5, 8)
    slots, _ = module(torch.randn(2, 7, 12), init(2))
    assert slots.dtype == dtype
    hidden = module.gru.weight_hh.detach().double()
    torch.testing.assert_close(
        hidden.T @ hidden,
        torch.eye(8, dtype=torch.float64),
        atol=4 * torch.finfo(dtype).eps,
        rtol=0,
    )
