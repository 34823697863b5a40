"""A disk that is full costs no checkpoint, and the command says in one line what could not be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training import forked, full_disk
from tests.training.runs import rows
from tests.training.tiny import TINY_FLAGS

pytestmark = pytest.mark.slow

RECIPE = ("--steps", 6, "--batch-size", 4, "--log-every", 1, "--validate-every", 2)


def checkpoint_files(run: Path) -> dict[Path, bytes]:
    files = (run / "checkpoints").rglob("*")
    return {path: path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def begun(tmp_path: Path, images: Path) -> Path:
    """A run that stands at step 2."""
    arguments = ("--data", images, *TINY_FLAGS, *RECIPE, "--picture-images", 2)
    for name, steps in (("whole", 6), ("run", 2)):
        ended = forked.fastslots("train", "--output", tmp_path / name, *arguments, "--steps", steps)
        assert ended.code == 0, ended.said
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("prepare", "size", "named", "saved"),
    [
        pytest.param(full_disk.limit, 100, "config.json", 2, id="config"),
        pytest.param(full_disk.limit_metrics, 2_000, "metrics.jsonl", 2, id="metrics"),
        pytest.param(full_disk.limit_pictures, 100, "step-000000004.png", 4, id="picture"),
        pytest.param(full_disk.limit_checkpoints, 100, "checkpoint of step 4", 2, id="weights"),
        pytest.param(full_disk.limit_checkpoints, 900_000, "checkpoint of step 4", 2, id="adam"),
    ],
)
def test_a_full_disk_loses_no_checkpoint_and_the_run_goes_on_from_it(
    begun: Path, prepare: Callable[..., None], size: int, named: str, saved: int
) -> None:
    before = checkpoint_files(begun)
    resume = ("train", "--resume", begun, "--steps", 6, "--device", "cpu")
    ended = forked.fastslots(*resume, prepare=prepare, given=size)
    assert ended.code == 2
    error = ended.said.splitlines()[-1]
    assert error.startswith("fastslots: error: ")
    assert named in error
    assert "could not be written" in error
    assert "File too large" in error
    assert "Traceback" not in ended.said
    after = checkpoint_files(begun)
    assert after.items() >= before.items()
    assert (after == before) == (saved == 2)
    again = forked.fastslots(*resume)
    assert again.code == 0, again.said
    assert rows(begun) == rows(begun.with_name("whole"))


def test_tensorboard_without_room_is_named(tmp_path: Path, images: Path) -> None:
    arguments = ("--data", images, *TINY_FLAGS, "--batch-size", 4, "--log-every", 1)
    ended = forked.fastslots(
        *("train", "--output", tmp_path / "run", *arguments, "--steps", 50),
        prepare=full_disk.limit,
        given=4_000,
    )
    assert ended.code == 2
    assert "run/tensorboard could not be written: [Errno 27] File too large" in ended.said
    assert "Traceback" not in ended.said
