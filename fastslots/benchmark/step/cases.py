"""What a training step is measured on: SLATE at several sizes, and ways to compute it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastslots.benchmark.attention.cases import GRADIENTS, check_names
from fastslots.models.slate.config import SLATEConfig
from fastslots_kernels.checks import check_choice, check_count

IMPLEMENTATIONS = ("public", "fastslots")
PRECISIONS = ("float32", "bf16")
IMAGE_SIZES = (64, 96, 128)
VOCAB_SIZES = (1024, 4096)


@dataclass(frozen=True)
class StepCase:
    """One model and batch.

    Args:
        config: Of the model; how gradients are taken is the provider's.
        batch_size: B.
        precision: Of `PRECISIONS`; "bf16" is autocast, with weights and optimiser in float32.

    Raises:
        TypeError: If batch_size is no int.
        ValueError: If batch_size is not positive or precision is unknown.
    """

    config: SLATEConfig
    batch_size: int
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, 1)
        check_choice("precision", self.precision, PRECISIONS)

    @property
    def name(self) -> str:
        """Pixels and vocabulary: "64px-v4096"."""
        return f"{self.config.image_size}px-v{self.config.vocab_size}"


@dataclass(frozen=True)
class StepProvider:
    """One way to compute a training step.

    Args:
        implementation: Of `IMPLEMENTATIONS`; "public" is SLATE in the form of its public code.
        gradient: Of slot attention, one of `GRADIENTS`; "public" has "unrolled" alone.
        compiled: Under torch.compile.
    """

    implementation: str
    gradient: str
    compiled: bool = False

    @property
    def label(self) -> str:
        """Implementation and compiler: "fastslots", "public + compile"."""
        return self.implementation + (" + compile" if self.compiled else "")


BASELINE = StepProvider("public", "unrolled")


def step_cases(
    batch_size: int,
    image_sizes: Sequence[int] = IMAGE_SIZES,
    vocab_sizes: Sequence[int] = VOCAB_SIZES,
    precision: str = "float32",
    config: SLATEConfig | None = None,
) -> list[StepCase]:
    """Every image size with every vocabulary.

    Args:
        batch_size: B.
        image_sizes: Pixels per side.
        vocab_sizes: V.
        precision: Of `PRECISIONS`.
        config: All other settings. Default: those of `SLATEConfig`.

    Raises:
        ValueError: If a size breaks its rule.
    """
    config = config or SLATEConfig()
    return [
        StepCase(replace(config, image_size=size, vocab_size=vocab), batch_size, precision)
        for size in image_sizes
        for vocab in vocab_sizes
    ]


def choose_step_providers(
    implementations: Sequence[str] | None = None,
    gradients: Sequence[str] | None = None,
    compiled: bool = True,
) -> list[StepProvider]:
    """The ways to compute that are asked for; eager ones first.

    Args:
        implementations: By name. Default: all.
        gradients: Of fastslots, by name. Default: all.
        compiled: Whether to add each under torch.compile.

    Raises:
        ValueError: If an implementation or gradient is unknown or none is given.
    """
    check_names("provider", implementations, IMPLEMENTATIONS)
    check_names("gradient", gradients, GRADIENTS)
    eager = [
        provider
        for implementation in implementations or IMPLEMENTATIONS
        for provider in (
            [BASELINE]
            if implementation == "public"
            else [StepProvider("fastslots", gradient) for gradient in gradients or GRADIENTS]
        )
    ]
    return eager + [replace(provider, compiled=True) for provider in eager if compiled]
