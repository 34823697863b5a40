"""Images a second of the scene renderer: ``python -m pytest benchmarks/bench_scenes.py``."""

from typing import TYPE_CHECKING

import pytest
import torch

from fastslots.data.scenes.dataset import Scenes, render_scenes
from fastslots.data.scenes.sampling import sample_scenes

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

NUM_IMAGES = 32


@pytest.fixture(scope="module", autouse=True)
def correct() -> None:
    """Refuses to measure a renderer whose images depend on their batch."""
    together = render_scenes(range(8))
    alone = torch.cat([render_scenes([i]).images for i in range(8)])
    assert torch.equal(together.images, alone)


@pytest.mark.parametrize("mirror", [True, False], ids=["mirror", "no-mirror"])
@pytest.mark.parametrize("image_size", [64, 128])
def test_render_batch(benchmark: "BenchmarkFixture", image_size: int, mirror: bool) -> None:
    """Images, masks and properties, at 4 samples a pixel."""
    dataset = Scenes(NUM_IMAGES, image_size=image_size, mirror=mirror)
    benchmark.pedantic(dataset.batch, [range(NUM_IMAGES)], rounds=5, warmup_rounds=1)
    benchmark.extra_info["images_per_s"] = NUM_IMAGES / benchmark.stats.stats.median


@pytest.mark.parametrize("max_objects", [6, 10])
def test_scene_parameters(benchmark: "BenchmarkFixture", max_objects: int) -> None:
    """The draw of a scene alone."""
    indices = torch.arange(NUM_IMAGES)
    benchmark.pedantic(
        sample_scenes,
        [indices],
        {"seed": 0, "min_objects": 3, "max_objects": max_objects},
        rounds=5,
        warmup_rounds=1,
    )
    benchmark.extra_info["scenes_per_s"] = NUM_IMAGES / benchmark.stats.stats.median
