"""What a run on a GPU launches: tests, checks, benchmarks and training steps, on tensors without memory."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from fastslots.benchmark import Call, Problem, Provider
from fastslots.benchmark.attention.cases import GRADIENTS
from fastslots.benchmark.attention.providers import MODES
from fastslots.benchmark.measure.precision import matmul_precision
from fastslots.benchmark.step.cases import StepCase, StepProvider, step_cases
from fastslots.benchmark.step.step import Step
from fastslots.comparison import measure
from fastslots.comparison.settings import Settings
from fastslots.models.slate import SLATE, SLATEConfig
from fastslots.tools import gradcheck
from fastslots.training.validation import validation_keys
from fastslots_kernels.fused.launch import Launch, record_launches
from gpu.checks import memcheck, smoke, unit_tests
from gpu.prepare.fake_gpu import CPU, distinct, fake_gpu, record
from gpu.profiling import attention, tune
from gpu.runner import SCRIPTS
from gpu.timing import shapes, slate

META = torch.device("meta")
COUNTS = (1, 2, 3, 7)  # of iterations: more launch nothing else

Work = tuple[str, Callable[[], object]]


class Recorded(NamedTuple):
    """What one piece of work launches, or why it could not be told."""

    name: str
    launches: list[Launch]
    failure: str = ""


def all_work() -> Iterator[Recorded]:
    """Everything."""
    yield from gpu_tests()
    for name, work in itertools.chain(
        checks(), timings(), attention_calls(), training_steps(), comparison()
    ):
        yield Recorded(name, record(work))
    yield Recorded("tune attention", distinct([one for _, one in attention.variants(META)]))
    for shape in tune.SHAPES:
        yield Recorded(f"tune {shape}", distinct(list(tune.all_launches([shape]))))


def gpu_tests(arguments: tuple[str, ...] = ()) -> Iterator[Recorded]:
    """The tests themselves; each ends where it would compare numbers."""
    recorder = _Recorder()
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider"]
    tests = [str(SCRIPTS.parent / name) for name in unit_tests.TESTS]
    printed = io.StringIO()
    with fake_gpu(), redirect_stdout(printed):  # or all would be skipped for want of a GPU
        pytest.main([*tests, *options, *arguments], plugins=[recorder])
    if not recorder.found:
        raise RuntimeError(f"no test of {tests} was run:\n{printed.getvalue()}")
    yield from recorder.found


def checks() -> Iterator[Work]:
    """Against float64, and what the sanitizers watch."""
    for name, check in smoke.CHECKS.items():

        def compare(check: smoke.Check = check) -> None:
            smoke.results(check, smoke.make_check(check, CPU), "triton")

        yield f"smoke {name}", compare

    def smallest() -> None:
        arguments = gradcheck.parse(memcheck.SMALLEST.split())
        problem = gradcheck.make_problem(arguments, CPU)
        problem.to(torch.float32).results("triton")

    yield "memcheck", smallest


def timings() -> Iterator[Work]:
    """Of iterations and training steps, at every shape."""
    for shape, mode in itertools.product(shapes.PAPERS, MODES):

        def work(shape: str = shape, mode: str = mode) -> None:
            case = shapes.case_of(shape, tiny=False)
            problem = Problem.make(case, CPU)
            with matmul_precision(case.precision):
                for count in COUNTS:
                    Call(Provider("triton", mode), problem, count).run()

        yield f"times {shape} {mode}", work


def attention_calls() -> Iterator[Work]:
    """Of SLATE's self-attention, at every image size."""
    for unit, length in attention.LENGTHS.items():

        def work(length: int = length) -> None:
            problem = attention.Problem.make(length, CPU)
            attention.results(problem, attention.PROVIDERS["triton"])

        yield f"attention {unit}", work


def training_steps() -> Iterator[Work]:
    """Of SLATE, and of its models in the comparison of gradients."""
    cases = step_cases(slate.BATCH_SIZE, slate.IMAGE_SIZES, (slate.VOCAB_SIZE,), "bf16")
    settings = Settings()
    for config in settings.configs().values():
        cases.append(StepCase(config, settings.batch_size, "bf16"))
    for case, gradient in itertools.product(cases, GRADIENTS):

        def work(case: StepCase = case, gradient: str = gradient) -> None:
            few = replace(case, config=replace(case.config, num_decoder_blocks=1))  # all are alike
            step = Step(StepProvider("fastslots", gradient), few, CPU)
            step.backward(step.forward())

        yield f"SLATE {case.name} batch {case.batch_size} {gradient}", work


def comparison() -> Iterator[Work]:
    """What is made of held-out scenes."""
    for name, config in Settings().configs().items():

        def work(config: SLATEConfig = config) -> None:
            model = SLATE(config).eval()
            images = torch.empty(measure.AT_A_TIME, 3, config.image_size, config.image_size)
            keys = validation_keys(0, len(images), 0)
            with torch.no_grad():
                out = model(images, 1.0, hard=True, keys=keys)
                model.residual(out.ids, out.slots)

        yield f"comparison {name}", work


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
    run: Any = getattr(module, "run", None)
    own: dict[str, Any] = {
        "CUDA": CPU,
        "run": lambda problem, name: run(problem, name) if name == "triton" else {},
        "memory_use": lambda forward, backward, _: (backward(forward()), (0, 0))[1],
        "assert_equal_in_float64": _seen,
        "assert_within_budget": _seen,
    }
    for name, value in own.items():
        if hasattr(module, name):
            yield module, name, value
    for owner, name in (
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
