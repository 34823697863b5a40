"""Results of slot attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.benchmark.attention.calls import Call, Times
from fastslots.benchmark.attention.check import BY_ORACLE
from fastslots.benchmark.attention.prepare import Prepared
from fastslots.benchmark.measure.bandwidth import gb_s
from fastslots.benchmark.results_file import ResultsFile, percentiles, quantile, same_named


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

    @property
    def share_of_copy(self) -> float | None:
        """Of the bandwidth of a copy, what the forward reaches; None: not measured."""
        if self.forward_gb_s is None or self.copy_gb_s is None:
            return None
        return self.forward_gb_s / self.copy_gb_s

    @classmethod
    def of(
        cls,
        call: Call,
        prepared: Prepared,
        times: Sequence[Times],
        reference: Sequence[Times] | None,
        copy_gb_s: float | None,
        joules: float | None,
    ) -> Row:
        """Summarises the measurements of one call; `reference` are the times it is compared with."""
        case, provider, memory = prepared.case, call.provider, prepared.memory[call]
        if not provider.has_backward:  # the lap after the forward is empty, but not of length 0
            times = [time._replace(backward_ms=0.0) for time in times]
            reference = reference and [time._replace(backward_ms=0.0) for time in reference]
        values: dict[str, Any] = same_named(cls, call, provider, case)
        for part in ("forward_ms", "backward_ms", "both_ms"):
            found = percentiles(part, [getattr(time, part) for time in times])
            missing = part == "backward_ms" and not provider.has_backward
            values |= dict.fromkeys(found) if missing else found
        values["speedup"] = None
        if reference is not None:
            pairs = zip(reference, times, strict=True)
            values["speedup"] = quantile(
                (usual.both_ms / this.both_ms for usual, this in pairs), 50
            )
        least_bytes = provider.least_bytes(case, call.iterations)
        values |= {
            "case": case.name,
            "provider": provider.label,
            "rounds": len(times),
            "kept_bytes": memory.kept_bytes,
            "peak_bytes": memory.peak_bytes,
            "check": prepared.checks[call].how,
            "gradient_error": prepared.checks[call].gradient_error,
            "launches_per_iteration": prepared.launches[provider],
            "copy_gb_s": copy_gb_s,
            "joules": joules,
            "forward_gb_s": gb_s(least_bytes, values["forward_ms_p50"]),
        }
        return cls(**values)


@dataclass(frozen=True)
class Results(ResultsFile[Row]):
    """Of slot attention."""

    row_type: ClassVar[type[Row]] = Row
