"""Images for the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastslots.data.folder import ImageFolder
from fastslots.training import loading
from fastslots.training.batches import BatchParts, StepBatches
from fastslots.training.loading import step_images, validation_batches, workers_for
from tests.training.tiny import Images

CPU = torch.device("cpu")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_get_their_micro_batches_in_order(
    images: Path, workers: int, dtype: torch.dtype
) -> None:
    folder = ImageFolder(images, image_size=8)
    batches = StepBatches(len(folder), BatchParts(6, accumulation=2), 0, first_step=2, steps=4)
    steps = list(step_images(folder, batches, CPU, dtype, workers))
    assert [len(step) for step in steps] == [2, 2]
    loaded = [batch for step in steps for batch in step]
    for batch, indices in zip(loaded, batches, strict=True):
        expected = torch.stack([folder[index] for index in indices])
        assert batch.dtype == dtype
        assert torch.equal(batch, expected.to(dtype))


@pytest.mark.filterwarnings("ignore:.*corrupt", "ignore:.*the next image replaces")
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_files_that_workers_meet_are_recorded(images: Path, workers: int) -> None:
    (images / "02.png").write_bytes(b"no image")
    folder = ImageFolder(images, image_size=8)
    for name in ("05.png", "07.png"):  # damaged after their headers were read
        (images / name).write_bytes(b"no image")
    batches = StepBatches(len(folder), BatchParts(4), 0, first_step=0, steps=7)
    assert len(list(step_images(folder, batches, CPU, torch.float32, workers))) == 7
    assert sorted(path.name for path in folder.corrupt) == ["02.png", "05.png", "07.png"]
    assert all("cannot be decoded" in reason for reason in folder.corrupt.values())


def test_validation_takes_its_part_in_batches() -> None:
    images = Images(10)
    parts = validation_batches(images, range(3, 10), 4, CPU, torch.float64)
    assert [len(part) for part in parts] == [4, 3]
    assert torch.equal(torch.cat(parts), images.tensors[0][3:].double())
    assert validation_batches(images, range(3, 3), 0, CPU, torch.float32) == []


def test_workers_decode_for_cuda_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 16)
    cuda = torch.device("cuda")
    assert workers_for(CPU, 1) == 0
    assert [workers_for(cuda, processes) for processes in (1, 2, 4, 16)] == [8, 7, 3, 1]
