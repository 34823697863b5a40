"""Results of slot attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from fastslots.benchmark.attention.calls import Call, Times
from fastslots.benchmark.attention.cases import Case
from fastslots.benchmark.attention.check import BY_ORACLE, Check
from fastslots.benchmark.measure.bandwidth import gb_s
from fastslots.benchmark.measure.memory import MemoryUse
from fastslots.benchmark.results_file import ResultsFile, quantile


class Measured(NamedTuple):
    """All that was measured of one call; None: not measured."""

    times: Sequence[Times]
    reference: Sequence[Times] | None  # of the eager reference, same gradient and iterations
    memory: MemoryUse | None
    check: Check
    launches_per_iteration: float | None
    copy_gb_s: float | None
    joules: float | None


@dataclass(frozen=True)
class Row:
    """One provider on one case at one number of iterations.

    Percentiles are over rounds; those of the backward are None where there is none. ``kept_bytes`` are
    alive after the forward beyond inputs and weights, ``peak_bytes`` at any time of forward and backward;
    None where the allocator does not say. ``speedup`` is the median over rounds of the time of reference
    in eager mode, same gradient and iterations, divided by this one's, forward and backward; None without
    such a reference. ``precision`` is that of products (see `cases.PRECISIONS`), ``check`` how results were
    checked, ``gradient_error`` the worst error of a gradient over what rounding explains, at that number of
    iterations or at 3 if it is greater. ``forward_gb_s`` is `Provider.least_bytes` over the forward's
    median, ``copy_gb_s`` the device's bandwidth of a copy, ``joules`` the energy of forward and backward.
    """

    case: str
    provider: str
    backend: str
    gradient: str
    compiled: bool
    batch: int
    num_inputs: int
    input_size: int
    num_slots: int
    slot_size: int
    mlp_hidden_size: int
    num_heads: int
    dtype: str
    iterations: int
    rounds: int
    forward_ms_p50: float
    forward_ms_p20: float
    forward_ms_p80: float
    backward_ms_p50: float | None
    backward_ms_p20: float | None
    backward_ms_p80: float | None
    both_ms_p50: float
    both_ms_p20: float
    both_ms_p80: float
    speedup: float | None
    input_bytes: int
    kept_bytes: int | None
    peak_bytes: int | None

    precision: str = "ieee"
    graphed: bool = False
    check: str = BY_ORACLE
    launches_per_iteration: float | None = None
    forward_gb_s: float | None = None
    copy_gb_s: float | None = None
    joules: float | None = None
    gradient_error: float | None = None

    @classmethod
    def of(cls, case: Case, call: Call, measured: Measured) -> Row:
        """Summarises the measurements of one call."""
        provider, memory = call.provider, measured.memory
        times, reference = measured.times, measured.reference
        if not provider.has_backward:  # the lap after the forward is empty, but not of length 0
            times = [time._replace(backward_ms=0.0) for time in times]
            reference = reference and [time._replace(backward_ms=0.0) for time in reference]
        quantiles: dict[str, Any] = {
            f"{part}_p{percent}": quantile((getattr(t, part) for t in times), percent)
            for part in ("forward_ms", "backward_ms", "both_ms")
            for percent in (50, 20, 80)
        }
        if not provider.has_backward:
            quantiles |= {name: None for name in quantiles if name.startswith("backward")}
        speedup = None
        if reference is not None:
            pairs = zip(reference, times, strict=True)
            speedup = quantile((usual.both_ms / this.both_ms for usual, this in pairs), 50)
        return cls(
            case=case.name,
            provider=provider.label,
            backend=provider.backend,
            gradient=provider.gradient,
            compiled=provider.compiled,
            **case.sizes,
            dtype=case.dtype,
            iterations=call.iterations,
            rounds=len(times),
            **quantiles,
            speedup=speedup,
            input_bytes=case.input_bytes,
            kept_bytes=memory and memory.kept_bytes,
            peak_bytes=memory and memory.peak_bytes,
            precision=case.precision,
            graphed=provider.graphed,
            check=measured.check.how,
            gradient_error=measured.check.gradient_error,
            launches_per_iteration=measured.launches_per_iteration,
            forward_gb_s=gb_s(
                provider.least_bytes(case, call.iterations), quantiles["forward_ms_p50"]
            ),
            copy_gb_s=measured.copy_gb_s,
            joules=measured.joules,
        )


@dataclass(frozen=True)
class Results(ResultsFile[Row]):
    """Of slot attention."""

    row_type: ClassVar[type[Row]] = Row
