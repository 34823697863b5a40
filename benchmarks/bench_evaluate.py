"""Images a second of the metrics: ``python -m pytest benchmarks/bench_evaluate.py``.

A batch as CLEVR gives it, 64 images of 128 pixels with up to 10 objects and 11 slots, on the GPU where
there is one. The last case is all that ``fastslots.evaluation.evaluate`` asks of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastslots.metrics import adjusted_rand_index, mean_best_overlap, slots_used, squared_error
from fastslots.pictures import segmentation
from tests.test_metrics import ari_over_pairs, best_overlap_over_sets, random_maps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_IMAGES, SIZE, NUM_OBJECTS, NUM_SLOTS = 64, 128, 10, 11


def make_inputs() -> dict[str, Tensor]:
    """Random maps, images and attention."""
    true, pred = random_maps(NUM_IMAGES, SIZE, NUM_OBJECTS, NUM_SLOTS)
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_IMAGES, 3, SIZE, SIZE)
    inputs = {
        "true": true.to(torch.uint8),
        "pred": pred.to(torch.uint8),
        "attn": torch.rand(NUM_IMAGES, (SIZE // 4) ** 2, NUM_SLOTS, generator=generator),
        "image": torch.rand(shape, generator=generator),
        "recon": torch.rand(shape, generator=generator),
    }
    return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}


def everything(true: Tensor, attn: Tensor, image: Tensor, recon: Tensor) -> Tensor:
    """The segmentation, and every metric of a batch."""
    segments = segmentation(attn, SIZE)
    parts = [
        adjusted_rand_index(true, segments, ignore_background=True),
        adjusted_rand_index(true, segments),
        mean_best_overlap(true, segments),
        squared_error(image, recon),
        squared_error(image, recon),
        slots_used(attn),
    ]
    return torch.stack(parts)


METRICS: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "adjusted_rand_index": (adjusted_rand_index, ["true", "pred"]),
    "mean_best_overlap": (mean_best_overlap, ["true", "pred"]),
    "squared_error": (squared_error, ["image", "recon"]),
    "everything": (everything, ["true", "attn", "image", "recon"]),
}


@pytest.fixture(scope="module", autouse=True)
def correct() -> None:
    """Refuses to measure metrics that differ from loops over pixels."""
    true, pred = random_maps(4, 10, 5, 7)
    maps = list(zip(true, pred, strict=True))
    on_device = true.to(DEVICE), pred.to(DEVICE)
    for ignore in (False, True):
        expected = [ari_over_pairs(*pair, ignore_background=ignore) for pair in maps]
        actual = adjusted_rand_index(*on_device, ignore_background=ignore)
        assert actual.tolist() == pytest.approx(expected, rel=1e-12)
    overlaps = [best_overlap_over_sets(*pair) for pair in maps]
    assert mean_best_overlap(*on_device).tolist() == pytest.approx(overlaps, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_metric(benchmark: BenchmarkFixture, name: str) -> None:
    """Seconds per batch, and images a second."""
    metric, arguments = METRICS[name]
    inputs = make_inputs()
    # .cpu() waits for the device
    benchmark.pedantic(
        lambda: metric(*(inputs[argument] for argument in arguments)).cpu(),
        rounds=10,
        warmup_rounds=2,
    )
    benchmark.extra_info["images_per_s"] = NUM_IMAGES / benchmark.stats.stats.median
