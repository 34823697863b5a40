"""SLATE's greedy generation: with the key-value cache, and running the whole prefix again.

    python -m pytest benchmarks/bench_generation.py --benchmark-columns=min,median,rounds

Times are seconds per call, for a whole batch, on the GPU where there is one. The uncached form is the
tests' oracle: index tokens and fused attention, so the ratio is what the cache alone saves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastslots.models.slate import SLATE, SLATEConfig
from tests.models.slate.uncached_generation import generate_uncached

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDERS: dict[str, Callable[[SLATE, Tensor], Tensor]] = {
    "cached": SLATE.generate,
    "uncached": generate_uncached,
}


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement; the rest are SLATEConfig's defaults (8 blocks, d_model 192)."""

    batch_size: int
    image_size: int


CASES = {
    "64-tokens": Case(batch_size=16, image_size=32),
    "256-tokens": Case(batch_size=16, image_size=64),
}


def make_inputs(case: Case, dtype: torch.dtype = torch.float32) -> tuple[SLATE, Tensor]:
    """An untrained model and slots for it."""
    torch.manual_seed(0)
    config = SLATEConfig(image_size=case.image_size)
    model = SLATE(config).to(DEVICE, dtype).eval()
    slots = torch.randn(case.batch_size, config.num_slots, config.slot_size, dtype=dtype)
    return model, slots.to(DEVICE)


@pytest.fixture(scope="module")
def verified() -> None:
    """Refuses to time wrong tokens: in float64 both forms generate the same."""
    model, slots = make_inputs(Case(batch_size=2, image_size=32), torch.float64)
    expected = generate_uncached(model, slots)
    assert torch.equal(model.generate(slots), expected)
    assert expected.unique().numel() > 2


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_generation(benchmark: BenchmarkFixture, case: Case, provider: str) -> None:
    """Times one provider on one case."""
    model, slots = make_inputs(case)
    generate = PROVIDERS[provider]
    rounds = 5 if provider == "cached" else 1
    # .cpu() waits for the device
    benchmark.pedantic(
        lambda: generate(model, slots).cpu(), rounds=rounds, warmup_rounds=rounds // 5
    )
