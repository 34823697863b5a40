"""The fused kernels as operators: registration, memory, layouts. What they compute: test_backends."""

from __future__ import annotations

import gc
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastslots import SlotAttention
from fastslots.benchmark.measure.memory import memory_use
from fastslots_kernels import SlotAttentionWeights, resolve_backend, slot_attention
from fastslots_kernels.fused import FusedStep, limits, ops
from fastslots_kernels.fused import call as fused
from fastslots_kernels.fused.plans import stores_normed
from fastslots_kernels.fused.products import fold
from tests.kernels.cases import (
    Case,
    assert_equal_in_float64,
    assert_within_budget,
    make_problem,
    run,
)

CPU = torch.device("cpu")


def operator_arguments(masked: bool, requires_grad: bool) -> tuple[list[Any], list[Any], list[Any]]:
    """Arguments of the three operators."""
    problem = make_problem(Case(masked=masked))
    weights = problem.weights
    folded = [t.detach() for t in fold(weights, 2, torch.float64)]
    tensors = [t.detach().clone() for t in weights.named_tensors().values()]
    inputs, slots, eps = problem.inputs.nan_to_num(0.0), problem.slots, list(weights.norm_eps)
    for tensor in (inputs, slots, *tensors):
        tensor.requires_grad_(requires_grad)
    iterate = [inputs, slots, problem.mask, folded, 2, 2, 0.1, 1e-8, eps]
    step = [inputs, slots, problem.mask, None, tensors, folded, 2, 1e-8, eps, torch.float32, True]
    d = problem.d_slots, problem.d_attn
    backward = [
        inputs,
        slots,
        problem.mask,
        tensors,
        [],
        *(None, None),
        *d,
        torch.float64,
        2,
        1e-8,
        eps,
        True,
    ]
    return iterate, step, backward


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by opcheck itself
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_are_registered_as_pytorch_wants_them(requires_grad: bool) -> None:
    iterate, step, backward = operator_arguments(requires_grad, requires_grad)
    torch.library.opcheck(ops.step, step)
    if not requires_grad:  # the other two are called without a graph alone
        torch.library.opcheck(ops.iterate, iterate)
        torch.library.opcheck(ops.step_backward, backward)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_operators_take_tensors_that_are_not_contiguous() -> None:
    for operator, arguments in zip(
        (ops.iterate, ops.step, ops.step_backward), operator_arguments(True, False), strict=True
    ):
        arguments = [t.mT.contiguous().mT if is_matrix(t) else t for t in arguments]
        if operator is not ops.iterate:  # its weights are of `fold`, and so contiguous
            at = arguments.index(None) + 1 if operator is ops.step else 3
            arguments[at] = [t.mT.contiguous().mT if is_matrix(t) else t for t in arguments[at]]
        torch.library.opcheck(operator, arguments)


def is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.dtype != torch.bool


@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_results_have_the_dtype_of_the_slots(gradient: str, iterations: int, grad: bool) -> None:
    options = {"gradient": gradient, "num_iterations": iterations}
    problem = make_problem(Case(), torch.float16)
    weights = problem.weights
    with torch.set_grad_enabled(grad):
        new, attn, _ = slot_attention(
            problem.inputs, problem.slots, weights, backend="triton", **options
        )
    assert new.dtype == attn.dtype == torch.float16


def test_autocast_decides_the_dtype_of_the_products() -> None:
    problem = make_problem(Case(), torch.float32)
    weights = problem.weights
    with torch.autocast("cpu", torch.float16):
        step = FusedStep(
            problem.inputs,
            problem.slots,
            weights,
            num_heads=1,
            epsilon=0.0,
            mask=None,
            keep=True,
        )
    assert [t.dtype for t in step.folded[:5]] == [torch.float16] * 5
    assert {t.dtype for t in step.folded[5:]} == {torch.float32}


def test_an_empty_batch_takes_one_iteration_to_converge_like_any_backend() -> None:
    problem = make_problem(Case(), torch.float32)
    weights = problem.weights
    inputs, slots = problem.inputs[:0], problem.slots[:0]
    used = [
        int(slot_attention(inputs, slots, weights, num_iterations=9, tolerance=t, backend=name)[2])
        for name in ("triton", "torch")
        for t in (None, 0.1)
    ]
    assert used == [9, 1, 9, 1]


def test_a_slot_that_nobody_attends_to_gets_the_mean_in_float16_too() -> None:
    problem = make_problem(Case(k=2, n=30), torch.float32)
    module = problem.module
    with torch.no_grad():  # the second slot's key is far below the first's for every input
        module.norm_inputs.weight.zero_()
        module.norm_inputs.bias.fill_(1.0)
        problem.slots[:] = torch.linspace(-1, 1, 8)
        problem.slots[:, 1] *= -1
        module.project_q.weight.copy_(torch.eye(8) * 8)
        module.project_k.weight[:] = torch.linspace(-1, 1, 8)[:, None] * 4
        module.norm_slots.weight.fill_(1.0)
        module.norm_slots.bias.zero_()
    weights = SlotAttentionWeights.from_module(module)
    arguments = (problem.inputs, problem.slots, weights)
    exact, attn, _ = slot_attention(*arguments, num_iterations=0, backend="reference")
    with torch.autocast("cpu", torch.float16):
        new, _, _ = slot_attention(*arguments, num_iterations=0, backend="triton")
    assert float(attn.detach().min()) < 1e-12
    torch.testing.assert_close(new, exact, rtol=0, atol=0.02)


def test_small_gradients_reach_the_inputs_in_float16_too() -> None:
    problem = make_problem(Case(), torch.float32)
    weights = problem.weights

    def d_inputs(scale: float) -> Tensor:
        inputs = problem.inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16):
            new, _, _ = slot_attention(
                inputs, problem.slots, weights, num_iterations=0, backend="triton"
            )
        (gradient,) = torch.autograd.grad((new * problem.d_slots).sum() * scale, inputs)
        return gradient / scale

    expected = d_inputs(1.0)
    largest = float(expected.abs().max())
    torch.testing.assert_close(d_inputs(2.0**-6), expected, rtol=0, atol=0.01 * largest)


# The interpreter, NumPy, mentions what a GPU does in silence in rows that nobody reads.
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_layer_norm_without_epsilon_is_finite_at_rows_that_are_not_there() -> None:
    problem = make_problem(Case(n=21, masked=True))
    for name in ("norm_inputs", "norm_slots", "norm_mlp"):
        getattr(problem.module, name).eps = 0.0
    problem.inputs = problem.inputs.nan_to_num(1.0)
    actual = run(problem, "triton")
    problem.mask, keep = None, problem.mask
    assert keep is not None
    assert all(value.isfinite().all() for value in actual.values())
    assert (actual["d_inputs"][~keep] == 0).all()


def kept_bytes(module: SlotAttention, inputs: Tensor, slots: Tensor, num_iterations: int) -> int:
    def forward() -> Any:
        outputs = module(inputs, slots, num_iterations=num_iterations)
        gc.collect()  # the interpreter leaves cycles behind that hold the tensors of a launch
        return outputs

    return memory_use(forward, lambda outputs: None, CPU).kept_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_offsets")
def test_an_implicit_step_keeps_little_and_the_same_for_any_number_of_iterations() -> None:
    module = SlotAttention(1, 6, 64, 64, 64, backend="triton")
    inputs, slots = torch.randn(1, 1024, 64, requires_grad=True), torch.randn(1, 6, 64)
    kept = [kept_bytes(module, inputs, slots, iterations) for iterations in (1, 4)]
    assert kept[0] == kept[1]
    assert 0 < kept[0] <= 0.15 * inputs.numel() * inputs.element_size()


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_offsets")
@pytest.mark.parametrize(("num_inputs", "kept"), [(50, 0), (1000, 5)])
def test_folded_weights_are_kept_where_the_inputs_are_large(num_inputs: int, kept: int) -> None:
    _, step, backward = operator_arguments(False, False)
    backward[0] = step[0] = torch.randn(2, num_inputs, 10, dtype=torch.float64)
    backward[8] = None  # the gradient of the attention
    again = ops.step_backward(*backward)
    backward[4] = step[5][:5]
    for gradient, expected in zip(ops.step_backward(*backward), again, strict=True):
        assert torch.equal(gradient, expected)
    step[1] = step[1].clone().requires_grad_()
    outputs = ops.step(*step)
    saved = {t.data_ptr() for t in outputs[0].grad_fn.saved_tensors if t is not None}
    assert sum(matrix.data_ptr() in saved for matrix in step[5][:5]) == kept


@pytest.mark.slow
def test_an_unrolled_step_keeps_the_slots_alone() -> None:
    module = SlotAttention(1, 5, 12, 8, 8, gradient="unrolled", backend="triton")
    inputs, slots = torch.randn(1, 9, 12, requires_grad=True), torch.randn(1, 5, 8)
    kept = [kept_bytes(module, inputs, slots, iterations) for iterations in (1, 2, 3, 4)]
    # An operator's empty outputs, attention and sums, take no bytes.
    assert [b - a for a, b in pairwise(kept[1:])] == [5 * 8 * 4] * 2


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_reads_nothing_that_it_has_not_written(gradient: str, dtype: torch.dtype) -> None:
    options = {"num_heads": 3, "gradient": gradient, "num_iterations": 2}
    problem = make_problem(Case(n=37, c=19, d=21, k=3, m=17, masked=True, options=options), dtype)
    assert all(value.isfinite().all() for value in run(problem, "triton").values())


@pytest.mark.slow
def test_many_splits_of_the_inputs_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(Case(b=1, n=290, masked=True))
    few = run(problem, "triton")
    monkeypatch.setattr(fused, "num_processors", lambda device: 64)
    weights = problem.weights
    call = ops._call(  # as the operators make it
        problem.inputs, problem.slots, None, fold(weights, 1, torch.float64), 1, 0.0, [0.0] * 3
    )
    assert call.new_sums(call.attend_plan(None)).shape[1] > fused._MOST_SPLITS_READ
    assert_equal_in_float64(run(problem, "triton"), few)


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_inputs_normalised_once_stay_within_the_budget(iterations: int) -> None:
    assert stores_normed(torch.float16, torch.float32)
    case = Case(n=100, c=24, d=16, k=5, masked=True, options={"num_iterations": iterations})
    problem = make_problem(case, torch.float32)
    oracle = run(problem.to(torch.float64), "reference")
    with torch.autocast("cpu", torch.float16):
        actual, eager = run(problem, "triton"), run(problem, "reference")
    assert_within_budget(actual, eager, oracle, torch.float16)


def test_inputs_with_channels_first_need_no_copy_and_get_a_gradient_alike() -> None:
    problem = make_problem(Case(n=40))
    expected = run(problem, "triton")
    problem.inputs = problem.inputs.mT.contiguous().mT
    inputs = problem.inputs.clone().requires_grad_()
    assert inputs.stride() == (400, 1, 40)
    assert_equal_in_float64(run(problem, "triton"), expected)
    step_arguments = operator_arguments(False, False)[2]
    step_arguments[0] = step_arguments[0].mT.contiguous().mT
    assert ops.step_backward(*step_arguments)[0].stride() == step_arguments[0].stride()


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    problem = make_problem(Case(), torch.float16)
    expected = run(problem, "triton")
    far = 2**31 + 8
    # Memory that nobody touches costs nothing.
    memory = torch.empty(far + 13 * 10, dtype=torch.float16)
    inputs = memory.as_strided((2, 13, 10), (far, 10, 1))
    inputs.copy_(problem.inputs)
    results = []
    for x in (problem.inputs, inputs):
        arguments = operator_arguments(False, False)[2]
        arguments = [t.half() if isinstance(t, Tensor) else t for t in arguments]
        arguments[3] = [t.half() for t in arguments[3]]
        arguments[0], arguments[9] = x, torch.float16
        results.append(ops.step_backward(*arguments))
    for near, distant in zip(*results, strict=True):
        torch.testing.assert_close(distant, near, rtol=0, atol=0)
    problem.inputs = inputs
    weights = problem.weights
    folded = list(fold(weights, 1, torch.float16))
    found, _, _ = ops.iterate(inputs, problem.slots, None, folded, 1, 4, None, 1e-8, [1e-5] * 3)
    torch.testing.assert_close(found.half(), expected["slots"], rtol=0, atol=2e-3)


def test_a_gradient_scaler_finds_the_same_step() -> None:
    torch.manual_seed(0)
    module = SlotAttention(2, 4, 16, 16, 16, backend="triton")
    inputs, slots = torch.randn(2, 30, 16), torch.randn(2, 4, 16)
    grads = []
    for scale in (1.0, 2.0**10):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        with torch.autocast("cpu", torch.float16):
            new, _ = module(inputs, slots)
        optimizer.zero_grad()
        scaler.scale(new.square().sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        grads.append(module.project_v.weight.grad.clone())
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, rtol=2e-2, atol=1e-3 * float(grads[0].abs().max()))


def test_works_under_data_parallel_training() -> None:
    module = SlotAttention(2, 3, 10, 8, 6, backend="triton").double()
    inputs, slots = torch.randn(2, 13, 10).double(), torch.randn(2, 3, 8).double()
    module(inputs, slots)[0].sum().backward()
    alone = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        DistributedDataParallel(module)(inputs, slots)[0].sum().backward()
    finally:
        dist.destroy_process_group()
    for parameter, grad in zip(module.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def resolve(
    c: int = 8, k: int = 2, d: int = 8, heads: int = 1, dtype: torch.dtype = torch.float32
) -> str:
    module = SlotAttention(1, k, c, d, 8, heads).to(dtype)
    weights = SlotAttentionWeights.from_module(module)
    inputs, slots = torch.zeros(1, 4, c, dtype=dtype), torch.zeros(1, k, d, dtype=dtype)
    with pytest.raises(RuntimeError) as error:
        resolve_backend("triton", inputs, slots, weights, heads)
    resolved = resolve_backend("auto", inputs, slots, weights, heads)
    assert resolved.name == "torch"
    assert resolved.reason.removeprefix("the fused kernels cannot run: ") in str(error.value)
    return resolved.reason


def test_limits_name_the_rule_and_the_value() -> None:
    assert "heads times slots must be at most 64; got 66" in resolve(k=33, heads=2)
    rule = "of {} bytes an entry, the input width must be at most {}; got {}"
    assert rule.format(4, 512, 513) in resolve(c=513)
    assert rule.format(4, 128, 129) in resolve(k=64, c=129)
    assert rule.format(2, 256, 257) in resolve(k=64, c=257, dtype=torch.float16)
    assert rule.format(8, 128, 129) in resolve(k=20, c=129, dtype=torch.float64)
    assert "slot width must be at most 512; got 513" in resolve(d=513)
    assert "slot width must be at most 256; got 257" in resolve(d=257, dtype=torch.float64)


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ((7, 5, 64), "need compute capability 8.0 or more; got 7.5"),
        ((8, 9, 99), "need 160 KiB of shared memory in a block; got 99"),
        ((9, 0, 227), None),
    ],
)
def test_a_gpu_that_cannot_run_them_is_named(
    properties: tuple[int, int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor, shared = properties
    monkeypatch.setattr(limits, "INTERPRETED", False)
    gpu = SimpleNamespace(major=major, minor=minor, shared_memory_per_block_optin=shared * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    found = limits._why_not_gpu(0)
    assert found is None if reason is None else found is not None and reason in found


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_INSTALLED", False)
    assert "triton is not installed" in resolve()


def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "need CUDA tensors, or TRITON_INTERPRET=1 for CPU tensors; got CPU tensors" in resolve()


def test_a_machine_without_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA device, and TRITON_INTERPRET=1 is not set"):
        resolve_backend("triton")


def test_the_interpreter_refuses_gpus() -> None:
    assert limits._why_not_gpu(0) == "TRITON_INTERPRET=1 is set, for CPU tensors"


def test_the_interpreter_refuses_bfloat16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert "computes bfloat16 wrongly" in resolve()


def test_auto_on_a_cpu_is_the_plain_form_even_with_the_interpreter() -> None:
    problem = make_problem(Case(), torch.float32)
    weights = problem.weights
    name, reason = resolve_backend("auto", problem.inputs, problem.slots, weights)
    assert name == "torch"
    assert "interpreted" in reason
    assert resolve_backend("auto").name == "torch"
