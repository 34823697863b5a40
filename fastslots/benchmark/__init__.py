"""Measures time and memory of slot attention and of SLATE's training step.

The one place that does: commands and README use it.
"""

from fastslots.benchmark.calls import Call, IncorrectResultError, Problem, check_call
from fastslots.benchmark.card_report import accuracy_markdown, attention_markdown, kernels_markdown
from fastslots.benchmark.cases import PRESETS, Case, Skipped, preset
from fastslots.benchmark.constant_memory import constant_memory_table, measure_constant_memory
from fastslots.benchmark.environment import describe_environment
from fastslots.benchmark.memory import MemoryUse, memory_use
from fastslots.benchmark.plot import plot_case
from fastslots.benchmark.providers import Provider, choose_providers
from fastslots.benchmark.report import markdown, result_tables
from fastslots.benchmark.results import Results, Row
from fastslots.benchmark.runner import run_benchmark
from fastslots.benchmark.slate_cases import (
    BASELINE,
    StepCase,
    StepProvider,
    choose_step_providers,
    step_cases,
)
from fastslots.benchmark.slate_check import check_against_public
from fastslots.benchmark.slate_plot import plot_steps
from fastslots.benchmark.slate_report import step_markdown, step_tables
from fastslots.benchmark.slate_results import StepResults, StepRow
from fastslots.benchmark.slate_runner import run_step_benchmark
from fastslots.benchmark.slate_step import Step
from fastslots.benchmark.speedups import growth, speedup_markdown, speedups
from fastslots.benchmark.speedups_plot import plot_speedups

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
