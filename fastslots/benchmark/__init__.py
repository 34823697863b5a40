"""Measures time and memory of slot attention. The one place that does: commands, suites and README use it."""

from fastslots.benchmark.calls import Call, IncorrectResultError, Problem, check_call
from fastslots.benchmark.cases import PRESETS, Case, Provider, Skipped, choose_providers, preset
from fastslots.benchmark.constant_memory import constant_memory_table, measure_constant_memory
from fastslots.benchmark.environment import describe_environment
from fastslots.benchmark.memory import MemoryUse, memory_use
from fastslots.benchmark.plot import plot_case
from fastslots.benchmark.report import markdown, result_tables
from fastslots.benchmark.results import Results, Row
from fastslots.benchmark.runner import run_benchmark

__all__ = [
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
    "check_call",
    "choose_providers",
    "constant_memory_table",
    "describe_environment",
    "markdown",
    "measure_constant_memory",
    "memory_use",
    "plot_case",
    "preset",
    "result_tables",
    "run_benchmark",
]
