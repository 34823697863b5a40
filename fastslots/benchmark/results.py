"""Results of slot attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.benchmark.calls import Call
from fastslots.benchmark.cases import Case
from fastslots.benchmark.memory import MemoryUse
from fastslots.benchmark.results_file import ResultsFile, quantile
from fastslots.benchmark.timing import Times


@dataclass(frozen=True)
class Row:
    """One provider on one case at one number of iterations.

    Percentiles are over rounds. ``kept_bytes`` are alive after the forward beyond inputs and weights,
    ``peak_bytes`` at any time of forward and backward; None where the allocator does not say.
    ``speedup`` is the median over rounds of the time of reference in eager mode, same gradient and
    iterations, divided by this one's, forward and backward; None without such a reference.
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
    backward_ms_p50: float
    backward_ms_p20: float
    backward_ms_p80: float
    both_ms_p50: float
    both_ms_p20: float
    both_ms_p80: float
    speedup: float | None
    input_bytes: int
    kept_bytes: int | None
    peak_bytes: int | None

    @classmethod
    def of(
        cls,
        case: Case,
        call: Call,
        memory: MemoryUse | None,
        times: Sequence[Times],
        reference: Sequence[Times] | None,
    ) -> Row:
        """Summarises the measurements of one call."""
        measured: dict[str, Any] = {
            f"{part}_p{percent}": quantile((getattr(t, part) for t in times), percent)
            for part in ("forward_ms", "backward_ms", "both_ms")
            for percent in (50, 20, 80)
        }
        speedup = None
        if reference is not None:
            pairs = zip(reference, times, strict=True)
            speedup = quantile((usual.both_ms / this.both_ms for usual, this in pairs), 50)
        return cls(
            case=case.name,
            provider=call.provider.label,
            backend=call.provider.backend,
            gradient=call.provider.gradient,
            compiled=call.provider.compiled,
            **case.sizes,
            dtype=case.dtype,
            iterations=call.iterations,
            rounds=len(times),
            **measured,
            speedup=speedup,
            input_bytes=case.input_bytes,
            kept_bytes=memory and memory.kept_bytes,
            peak_bytes=memory and memory.peak_bytes,
        )


@dataclass(frozen=True)
class Results(ResultsFile[Row]):
    """Of slot attention."""

    row_type: ClassVar[type[Row]] = Row
