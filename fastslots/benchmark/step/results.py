"""Results of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastslots.benchmark.measure.memory import MemoryUse
from fastslots.benchmark.results_file import ResultsFile, quantile
from fastslots.benchmark.step.step import PartTimes, Step, StepTimes


@dataclass(frozen=True)
class Measured:
    """What was measured of one step.

    Attributes:
        times: By round.
        parts: Of forwards, by round; none for compiled providers.
        memory: Of forward and backward; None where the allocator does not say.
    """

    times: Sequence[StepTimes]
    parts: Sequence[PartTimes]
    memory: MemoryUse | None


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
        provider, case, config = step.provider, step.case, step.case.config
        medians: dict[str, Any] = dict.fromkeys(PartTimes._fields)
        for series in (measured.times, measured.parts):
            for name in series[0]._fields if series else ():
                medians[name] = quantile((getattr(times, name) for times in series), 50)
        steps = [times.step_ms for times in measured.times]
        speedup = peak_ratio = None
        if baseline is not None:
            pairs = zip(baseline.times, steps, strict=True)
            speedup = quantile((usual.step_ms / this for usual, this in pairs), 50)
            if baseline.memory and measured.memory:
                peak_ratio = measured.memory.peak_bytes / baseline.memory.peak_bytes
        return cls(
            case=case.name,
            provider=provider.label,
            implementation=provider.implementation,
            gradient=provider.gradient,
            compiled=provider.compiled,
            precision=case.precision,
            batch_size=case.batch_size,
            image_size=config.image_size,
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            num_decoder_blocks=config.num_decoder_blocks,
            num_decoder_heads=config.num_decoder_heads,
            dropout=config.dropout,
            num_slots=config.num_slots,
            num_iterations=config.num_iterations,
            rounds=len(steps),
            images_per_s=1e3 * case.batch_size / quantile(steps, 50),
            step_ms_p50=quantile(steps, 50),
            step_ms_p20=quantile(steps, 20),
            step_ms_p80=quantile(steps, 80),
            **medians,
            kept_bytes=measured.memory and measured.memory.kept_bytes,
            peak_bytes=measured.memory and measured.memory.peak_bytes,
            speedup=speedup,
            peak_ratio=peak_ratio,
        )


@dataclass(frozen=True)
class StepResults(ResultsFile[StepRow]):
    """Of training steps."""

    row_type: ClassVar[type[StepRow]] = StepRow
