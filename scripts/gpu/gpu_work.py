"""What a run on a GPU launches: tests, checks, benchmarks and training steps, on tensors without memory."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gradcheck_arguments
import gradient_table
import pytest
import torch
import tune
from fake_gpu import CPU, distinct, fake_gpu, record

from fastslots.benchmark import PRESETS
from fastslots.benchmark.calls import Call, Problem
from fastslots.benchmark.cases import GRADIENTS
from fastslots.benchmark.precision import matmul_precision
from fastslots.benchmark.providers import MODES, Provider
from fastslots.benchmark.slate_cases import PRECISIONS, StepCase, StepProvider
from fastslots.benchmark.slate_step import Step
from fastslots.cli.train import CPU_SETTINGS
from fastslots.slate import SLATEConfig
from fastslots_kernels.fused.launch import Launch, record_launches

TESTS = str(Path(__file__).parents[2] / "tests" / "kernels" / "test_gpu.py")
# What gradcheck is run on: SLATE's shape, one that is no multiple of anything, and a tiny one.
SHAPES = {
    "slate": "--batch 8 --inputs 256 --input-size 192 --slots 6 --slot-size 192 --mlp 192",
    "ragged": "--batch 3 --inputs 101 --input-size 40 --slots 5 --slot-size 24 --mlp 56 --heads 3 --masked",
    "smallest": "--batch 2 --inputs 40 --input-size 16 --slots 3 --slot-size 16 --mlp 16 --iterations 1",
}
# More iterations launch nothing else.
ITERATIONS = (1, 2, 3, 7)


class Recorded(NamedTuple):
    """What one piece of work launches, or why it could not be told."""

    name: str
    launches: list[Launch]
    failure: str = ""


def all_work() -> Iterator[Recorded]:
    """Everything."""
    yield from gpu_tests()
    for name, work in itertools.chain(gradchecks(), benchmarks(), training_steps()):
        yield Recorded(name, record(work))
    for shape in tune.SHAPES:
        yield Recorded(f"tune {shape}", distinct(list(tune.all_launches([shape]))))


def gpu_tests(arguments: tuple[str, ...] = ()) -> Iterator[Recorded]:
    """The tests themselves; each ends where it would compare numbers."""
    recorder = _Recorder()
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider"]
    printed = io.StringIO()
    with fake_gpu(), redirect_stdout(printed):  # or all would be skipped for want of a GPU
        pytest.main([TESTS, *options, *arguments], plugins=[recorder])
    if not recorder.found:
        raise RuntimeError(f"no test of {TESTS} was run:\n{printed.getvalue()}")
    yield from recorder.found


def gradchecks() -> Iterator[tuple[str, Callable[[], object]]]:
    """Of `gradcheck`: the shapes, in all dtypes."""
    for shape, gradient in itertools.product(SHAPES, ("neumann", "unrolled")):
        for dtype in (*gradcheck_arguments.DTYPES, "tf32"):
            arguments = gradcheck_arguments.parse([*SHAPES[shape].split(), "--gradient", gradient])

            def work(arguments: Any = arguments, dtype: str = dtype) -> None:
                problem = gradient_table.make_problem(arguments, CPU)
                with matmul_precision(dtype):
                    name = "float32" if dtype == "tf32" else dtype
                    problem.to(getattr(torch, name)).results("triton")

            yield f"gradcheck {shape} {gradient} {dtype}", work


def benchmarks() -> Iterator[tuple[str, Callable[[], object]]]:
    """Of the benchmarks: every shape, precision and way to take gradients."""
    for cases, precision, mode in itertools.product(
        PRESETS.values(), ("bf16", "tf32", "ieee"), MODES
    ):
        for case in cases:

            def work(case: Any = case, precision: str = precision, mode: str = mode) -> None:
                problem = Problem.make(replace(case, precision=precision), CPU)
                with matmul_precision(precision):
                    for count in ITERATIONS:
                        Call(Provider("triton", mode), problem, count).run()

            yield f"benchmark {case.name} {precision} {mode}", work


def training_steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """Of SLATE, at the papers' sizes and at those of `fastslots train` on a CPU."""
    sizes = itertools.product((32, 64, 96, 128), (6, 12))
    models = [(SLATEConfig(image_size=size, num_slots=slots), 50) for size, slots in sizes]
    models.append((SLATEConfig(**CPU_SETTINGS["model"]), CPU_SETTINGS["recipe"]["batch_size"]))
    for (config, batch), gradient, precision in itertools.product(models, GRADIENTS, PRECISIONS):
        case = StepCase(replace(config, num_decoder_blocks=1, vocab_size=64), batch, precision)

        def work(case: StepCase = case, gradient: str = gradient) -> None:
            step = Step(StepProvider("fastslots", gradient), case, CPU)
            found: list[Any] = []

            def keep(module: Any, inputs: Any, outputs: Any) -> None:
                found.extend(outputs)
                raise _Seen

            step.model.slot_attn.register_forward_hook(keep)
            with suppress(_Seen):
                step.forward()
            found[0].sum().backward()  # the slots: the loss needs nothing else of slot attention

        yield (
            f"SLATE {case.name} batch {batch}, {config.num_slots} slots {gradient} {precision}",
            work,
        )


class _Seen(Exception):
    """A test has launched all that it launches: values would be compared next, or launches repeated."""


class _Recorder:
    """A plugin of pytest: tests of a GPU run without one, and are recorded."""

    def __init__(self) -> None:
        self.found: list[Recorded] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Iterator[None]:
        """Records a test."""
        failure = ""
        with record_launches() as launches, ExitStack() as stack:
            for target, name, value in _patches(item.module):
                stack.enter_context(mock.patch.object(target, name, value))
            try:
                yield
            except _Seen:
                pass
            except Exception as error:
                failure = f"{type(error).__name__}: {error}".partition("\n")[0]
        self.found.append(Recorded(item.nodeid, distinct(launches), failure))


def _patches(module: Any) -> Iterator[tuple[Any, str, Any]]:
    yield module, "CUDA", CPU
    run = module.run
    yield module, "run", lambda problem, name: run(problem, name) if name == "triton" else {}
    yield module, "memory_use", lambda forward, backward, _: (backward(forward()), (0, 0))[1]
    for owner, name in (
        (module, "assert_equal_in_float64"),
        (module, "assert_within_budget"),
        (torch, "equal"),
        (torch.testing, "assert_close"),
        (torch.cuda, "Stream"),
        (torch.nn.Module, "compile"),
    ):
        yield owner, name, _seen
    yield torch.autograd, "gradcheck", _differentiate
    yield torch.cuda, "set_sync_debug_mode", lambda _: None


def _seen(*_: Any, **__: Any) -> None:
    raise _Seen


def _differentiate(function: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> bool:
    torch.autograd.backward([output.sum() for output in function(*inputs)])
    return True
