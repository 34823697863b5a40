"""Measures time and memory of slot attention and of SLATE's training step.

The one place that does: commands and README use it.
"""

from fastslots.benchmark.attention.calls import Call, Problem
from fastslots.benchmark.attention.cases import PRESETS, Case, preset
from fastslots.benchmark.attention.check import IncorrectResultError, check_call
from fastslots.benchmark.attention.providers import Provider, choose_providers
from fastslots.benchmark.attention.reports.plot import plot_case
from fastslots.benchmark.attention.reports.rows import (
    constant_memory_table,
    markdown,
    result_tables,
)
from fastslots.benchmark.attention.results import Results
from fastslots.benchmark.attention.runner import measure_constant_memory, run_benchmark
from fastslots.benchmark.results_file import Skipped
from fastslots.benchmark.step.cases import (
    BASELINE,
    StepCase,
    StepProvider,
    choose_step_providers,
    step_cases,
)
from fastslots.benchmark.step.plot import plot_steps
from fastslots.benchmark.step.report import step_markdown, step_tables
from fastslots.benchmark.step.results import StepResults
from fastslots.benchmark.step.runner import run_step_benchmark
from fastslots.benchmark.step.step import Step

__all__ = [
    "BASELINE",
    "PRESETS",
    "Call",
    "Case",
    "IncorrectResultError",
    "Problem",
    "Provider",
    "Results",
    "Skipped",
    "Step",
    "StepCase",
    "StepProvider",
    "StepResults",
    "check_call",
    "choose_providers",
    "choose_step_providers",
    "constant_memory_table",
    "markdown",
    "measure_constant_memory",
    "plot_case",
    "plot_steps",
    "preset",
    "result_tables",
    "run_benchmark",
    "run_step_benchmark",
    "step_cases",
    "step_markdown",
    "step_tables",
]
