"""A run keeps to the images that it began with, in training and in evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command, Result
from tests.training.tiny import TINY_FLAGS

SMALL = [*TINY_FLAGS, "--batch-size", "4", "--validation-images", "2", "--picture-images", "1"]


@pytest.fixture
def train(fastslots: Command, images: Path) -> Callable[[], Result]:
    """Begins a run of one step in ``run``."""

    def begin() -> Result:
        result = fastslots("train", "--data", images, "--output", "run", "--steps", 1, *SMALL)
        assert result.code == 0, result.err
        return result

    return begin


@pytest.fixture
def resume(fastslots: Command) -> Callable[[], Result]:
    return lambda: fastslots("train", "--resume", "run", "--steps", 2, "--device", "cpu")


@pytest.fixture
def evaluate(fastslots: Command) -> Callable[..., Result]:
    return lambda *options: fastslots("evaluate", "run", "--device", "cpu", *options)


def in_folders(images: Path, **counts: int) -> None:
    """Moves the twenty images to folders of these names, in order."""
    paths = iter(sorted(images.glob("*.png")))
    for folder, count in counts.items():
        (images / folder).mkdir()
        for _ in range(count):
            path = next(paths)
            path.rename(images / folder / path.name)
    assert next(paths, None) is None


def test_a_run_lists_the_files_of_its_splits(train: Callable[[], Result]) -> None:
    train()
    record = json.loads(Path("run/images.json").read_text())
    names = [f"{index:02d}.png" for index in range(20)]
    assert record == {"train": names[:14], "val": names[14:17], "test": names[17:]}


@pytest.mark.parametrize("data", [[], ["--data", "images"], ["--data", "link"]])
def test_another_image_ends_resuming_and_evaluating(
    images: Path,
    train: Callable[[], Result],
    resume: Callable[[], Result],
    evaluate: Callable[..., Result],
    data: list[str],
) -> None:
    train()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    Path("link").symlink_to(images)
    shutil.copy(images / "00.png", images / "0.png")
    refused = {"begin a new run": resume(), "name a folder of other images": evaluate(*data)}
    for advice, result in refused.items():
        assert result.code == 2
        assert "must be those that" in result.err
        assert (
            "run began with; got 1 added, the first to train: '0.png'; moved by that: 1 from train to val, "
            f"1 from val to test: put the folder back as it was, or {advice}"
        ) in result.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    (images / "0.png").unlink()
    assert evaluate(*data).code == 0
    assert resume().code == 0


@pytest.mark.filterwarnings("ignore:.*corrupt")
def test_an_image_that_breaks_is_no_other_one(
    images: Path,
    train: Callable[[], Result],
    resume: Callable[[], Result],
    evaluate: Callable[..., Result],
) -> None:
    train()
    (images / "03.png").write_bytes(b"no image")
    (images / "19.png").unlink()
    (images / "19.png").symlink_to("gone")
    assert resume().code == 0
    assert "corrupt images left out or replaced: 1" in evaluate().out


def test_a_folder_that_was_moved_is_the_same(
    images: Path, train: Callable[[], Result], resume: Callable[[], Result]
) -> None:
    train()
    images.rename("moved")
    config = json.loads(Path("run/config.json").read_text())
    config["data"]["data"] = str(Path("moved").absolute())
    Path("run/config.json").write_text(json.dumps(config))
    assert resume().code == 0


def test_folders_of_splits_are_trained_and_evaluated_on(
    fastslots: Command,
    images: Path,
    train: Callable[[], Result],
    evaluate: Callable[..., Result],
) -> None:
    in_folders(images, test=4, train=10, Validation=6)
    assert "10 images to train on, 6 held out" in train().out
    assert evaluate().code == 0
    report = json.loads(Path("run/evaluation-test/evaluation.json").read_text())
    assert report["num_images"] == 4


def test_a_folder_without_test_is_evaluated_when_it_has_one(
    images: Path,
    train: Callable[[], Result],
    resume: Callable[[], Result],
    evaluate: Callable[..., Result],
) -> None:
    in_folders(images, train=10, val=10)
    train()
    refused = evaluate()
    assert refused.code == 2
    assert "split 'test' of" in refused.err
    assert "add a folder named test, or choose another split or folder" in refused.err
    shutil.copytree(images / "val", images / "test")
    assert evaluate().code == 0
    assert resume().code == 0
    assert len(json.loads(Path("run/images.json").read_text())["test"]) == 10
    (images / "test" / "10.png").unlink()
    assert "1 removed, the first from test: 'test/10.png'" in evaluate().err


def test_another_folder_may_hold_no_image_that_was_trained_on(
    images: Path, train: Callable[[], Result], evaluate: Callable[..., Result]
) -> None:
    in_folders(images, a=10, b=10)
    train()
    refused = evaluate("--data", images / "a")
    assert refused.code == 2
    assert f"split 'test' of {images / 'a'} must hold no image that" in refused.err
    assert "got 2, the first '08.png'" in refused.err
    assert evaluate("--data", images / "a", "--split", "train").code == 0
    assert evaluate("--data", images / "b").code == 0
    shutil.copytree(images / "a", "other")
    assert evaluate("--data", "other").code == 0


def test_a_run_of_an_earlier_version_goes_on_with_a_warning(
    train: Callable[[], Result], resume: Callable[[], Result], evaluate: Callable[..., Result]
) -> None:
    train()
    record = Path("run/images.json").read_text()
    Path("run/images.json").unlink()
    for result in (evaluate(), resume()):
        assert result.code == 0
        assert (
            "has no images.json, as it was begun by an earlier version: whether the" in result.err
        )
    assert Path("run/images.json").read_text() == record


def test_a_run_of_an_earlier_version_may_have_seen_all_folders(
    images: Path,
    train: Callable[[], Result],
    resume: Callable[[], Result],
    evaluate: Callable[..., Result],
) -> None:
    in_folders(images, train=10, val=6, test=4)
    train()
    Path("run/images.json").unlink()
    for result, advice in ((evaluate(), "by --data"), (resume(), "begin a new run")):
        assert result.code == 2
        assert "which trained on images of all folders in" in result.err
        assert advice in result.err


def test_a_damaged_list_is_named(
    train: Callable[[], Result], resume: Callable[[], Result], evaluate: Callable[..., Result]
) -> None:
    train()
    Path("run/images.json").write_text("{")
    for result in (resume(), evaluate()):
        assert result.code == 2
        assert "images.json is damaged" in result.err
