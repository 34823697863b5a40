import dataclasses

import pytest
import torch

from fastslots.benchmark import (
    BASELINE,
    Step,
    StepCase,
    run_step_benchmark,
    step_cases,
)
from fastslots.benchmark.step.step import PartTimes
from tests.benchmark.step.cases import CONFIG, CPU, IMPLICIT, TINY

pytestmark = pytest.mark.slow


@pytest.fixture
def eager_compiler(monkeypatch):
    """Traces, but generates no code: that takes a minute."""
    compile_, options_seen = torch.compile, []

    def compile_without_code(model, mode, **options):
        options_seen.append({"mode": mode, **options})
        return compile_(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_without_code)
    return options_seen


def test_compiled_providers_are_one_graph_each_and_have_no_parts(eager_compiler, unchecked):
    case = StepCase(dataclasses.replace(CONFIG, num_iterations=1), 2)
    providers = [dataclasses.replace(provider, compiled=True) for provider in (BASELINE, IMPLICIT)]
    measured = run_step_benchmark([case], [BASELINE, *providers], CPU, repeats=3)
    assert not measured.skipped
    assert [row.provider for row in measured.rows] == [
        "public",
        "public + compile",
        "fastslots + compile",
    ]
    for row in measured.rows[1:]:
        assert row.compiled
        assert all(getattr(row, part) is None for part in PartTimes._fields)
        assert row.peak_bytes > 0
        assert row.speedup > 0
    assert eager_compiler == [{"mode": "default", "fullgraph": True, "dynamic": False}] * 2


def test_graphs_of_one_case_do_not_count_against_the_next(eager_compiler):
    cases = step_cases(2, [8, 12, 16], [40], config=dataclasses.replace(CONFIG, num_iterations=1))
    compiled = dataclasses.replace(BASELINE, compiled=True)
    with torch._dynamo.config.patch(recompile_limit=1):  # the default is 8: this is faster
        measured = run_step_benchmark(cases, [compiled], CPU, repeats=3)
    assert not measured.skipped
    assert [row.image_size for row in measured.rows] == [8, 12, 16]


def test_what_cannot_be_compiled_is_left_out_with_its_reason(monkeypatch, unchecked):
    def fail(*_, **__):
        raise RuntimeError("no working C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    compiled = dataclasses.replace(BASELINE, compiled=True)
    measured = run_step_benchmark([TINY], [BASELINE, compiled], CPU, repeats=3)
    assert [row.provider for row in measured.rows] == ["public"]
    (left_out,) = measured.skipped
    assert (left_out.provider, left_out.case) == ("public + compile", "16px-v40")
    assert left_out.reason == "torch.compile failed: no working C++ compiler"


def test_nothing_is_compiled_beyond_the_limit():
    compiled = dataclasses.replace(BASELINE, compiled=True)
    measured = run_step_benchmark([TINY], [compiled], CPU, compile_limit_s=0)
    assert not measured.rows
    assert [entry.reason for entry in measured.skipped] == [
        "torch.compile would take longer than the limit, 0 s"
    ]


@pytest.mark.parametrize("method", ["run", "backward_and_free"])
def test_what_does_not_fit_the_gpu_is_left_out_with_its_reason(monkeypatch, unchecked, method):
    right = getattr(Step, method)

    def run_small(step, *arguments):
        if step.provider == BASELINE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return right(step, *arguments)

    monkeypatch.setattr(Step, method, run_small)
    measured = run_step_benchmark([TINY], [BASELINE, IMPLICIT], CPU, repeats=3)
    assert [row.provider for row in measured.rows] == ["fastslots"]
    assert [(entry.provider, entry.reason) for entry in measured.skipped] == [
        ("public", "out of memory: CUDA out of memory. Tried to allocate 2 GiB")
    ]


def test_errors_of_eager_providers_are_not_hidden(monkeypatch, unchecked):
    def fail(step):
        raise RuntimeError("broken")

    monkeypatch.setattr(Step, "run", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run_step_benchmark([TINY], [BASELINE], CPU)


def test_without_the_public_form_there_is_nothing_to_compare_with(unchecked):
    (row,) = run_step_benchmark([TINY], [IMPLICIT], CPU, repeats=3).rows
    assert (row.speedup, row.peak_ratio) == (None, None)
