"""Results of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from fastslots.benchmark.measure.memory import MemoryUse
from fastslots.benchmark.results_file import ResultsFile, percentiles, quantile, same_named
from fastslots.benchmark.step.step import PartTimes, Step, StepTimes


class Measured(NamedTuple):
    """What was measured of one step."""

    times: Sequence[StepTimes]  # by round
    parts: Sequence[PartTimes]  # of forwards, by round; none for compiled providers
    memory: MemoryUse | None  # of forward and backward; None where the allocator does not say


@dataclass(frozen=True)
class StepRow:
    """One provider on one case.

    Times are medians over rounds, but for the 20th and 80th percentile of the step. ``kept_bytes`` are alive
    after the forward beyond model, optimiser and images, ``peak_bytes`` at any time of forward and
    backward. ``speedup`` is the median over rounds of the time of the eager public form divided by this
    one's, ``peak_ratio`` its peak memory divided into this one's; None where one of both is missing.
    """

    case: str
    provider: str
    implementation: str
    gradient: str
    compiled: bool
    precision: str
    batch_size: int
    image_size: int
    vocab_size: int
    d_model: int
    num_decoder_blocks: int
    num_decoder_heads: int
    dropout: float
    num_slots: int
    num_iterations: int
    rounds: int
    images_per_s: float
    step_ms_p50: float
    step_ms_p20: float
    step_ms_p80: float
    forward_ms: float
    backward_ms: float
    update_ms: float
    encoder_ms: float | None
    tokens_ms: float | None
    slots_ms: float | None
    transformer_ms: float | None
    output_ms: float | None
    kept_bytes: int | None
    peak_bytes: int | None
    speedup: float | None
    peak_ratio: float | None

    @classmethod
    def of(cls, step: Step, measured: Measured, baseline: Measured | None) -> StepRow:
        """Summarises the measurements of one provider."""
        case, memory = step.case, measured.memory
        values: dict[str, Any] = same_named(cls, step.provider, case, case.config)
        values |= dict.fromkeys((*PartTimes._fields, "speedup", "peak_ratio"))
        for series in (measured.times, measured.parts):
            for name in series[0]._fields if series else ():
                values[name] = quantile((getattr(times, name) for times in series), 50)
        steps = [times.step_ms for times in measured.times]
        values |= percentiles("step_ms", steps)
        if baseline is not None:
            pairs = zip(baseline.times, steps, strict=True)
            values["speedup"] = quantile((usual.step_ms / this for usual, this in pairs), 50)
            if baseline.memory and memory:
                values["peak_ratio"] = memory.peak_bytes / baseline.memory.peak_bytes
        values |= {
            "case": case.name,
            "provider": step.provider.label,
            "rounds": len(steps),
            "images_per_s": 1e3 * case.batch_size / values["step_ms_p50"],
            "kept_bytes": memory and memory.kept_bytes,
            "peak_bytes": memory and memory.peak_bytes,
        }
        return cls(**values)


@dataclass(frozen=True)
class StepResults(ResultsFile[StepRow]):
    """Of training steps."""

    row_type: ClassVar[type[StepRow]] = StepRow
