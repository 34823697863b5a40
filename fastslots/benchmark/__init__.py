"""Measures time and memory of slot attention and of SLATE's training step.

The one place that does: commands and README use it.
"""

from fastslots.benchmark.attention.calls import Call, Problem
from fastslots.benchmark.attention.cases import PRESETS, Case, preset
from fastslots.benchmark.attention.check import IncorrectResultError, check_call
from fastslots.benchmark.attention.providers import Provider, choose_providers
from fastslots.benchmark.attention.reports.card import (
    accuracy_markdown,
    attention_markdown,
    kernels_markdown,
)
from fastslots.benchmark.attention.reports.plot import plot_case
from fastslots.benchmark.attention.reports.rows import (
    constant_memory_table,
    markdown,
    result_tables,
)
from fastslots.benchmark.attention.reports.speedups import growth, speedup_markdown, speedups
from fastslots.benchmark.attention.reports.speedups_plot import plot_speedups
from fastslots.benchmark.attention.results import Results, Row
from fastslots.benchmark.attention.runner import measure_constant_memory, run_benchmark
from fastslots.benchmark.measure.memory import MemoryUse, memory_use
from fastslots.benchmark.results_file import Skipped
from fastslots.benchmark.step.cases import (
    BASELINE,
    StepCase,
    StepProvider,
    choose_step_providers,
    step_cases,
)
from fastslots.benchmark.step.check import check_against_public
from fastslots.benchmark.step.plot import plot_steps
from fastslots.benchmark.step.report import step_markdown, step_tables
from fastslots.benchmark.step.results import StepResults, StepRow
from fastslots.benchmark.step.runner import run_step_benchmark
from fastslots.benchmark.step.step import Step
from fastslots.environment import describe_environment

__all__ = [
    "BASELINE",
    "PRESETS",
    "Call",
    "Case",
    "IncorrectResultError",
    "MemoryUse",
    "Problem",
    "Provider",
    "Results",
    "Row",
    "Skipped",
    "Step",
    "StepCase",
    "StepProvider",
    "StepResults",
    "StepRow",
    "accuracy_markdown",
    "attention_markdown",
    "check_against_public",
    "check_call",
    "choose_providers",
    "choose_step_providers",
    "constant_memory_table",
    "describe_environment",
    "growth",
    "kernels_markdown",
    "markdown",
    "measure_constant_memory",
    "memory_use",
    "plot_case",
    "plot_speedups",
    "plot_steps",
    "preset",
    "result_tables",
    "run_benchmark",
    "run_step_benchmark",
    "speedup_markdown",
    "speedups",
    "step_cases",
    "step_markdown",
    "step_tables",
]
