"""The loop: files, resuming, interrupts, full disks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastslots.slate import SLATE
from fastslots.training import Recipe, find_checkpoint, train
from fastslots.training import checkpoints as checkpoints_module
from fastslots.training.validation import validate
from tests.training.tiny import Images, tiny_model, tiny_recipe

pytestmark = pytest.mark.usefixtures("_quiet")


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")


def run(folder: Path, recipe: Recipe, *, resume: bool = False, images: int = 10) -> SLATE:
    folder.mkdir(exist_ok=True)
    model = tiny_model()
    train(model, recipe, Images(images), Images(6, seed=1), folder, resume=resume)
    return model


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_a_run_leaves_metrics_pictures_and_checkpoints(tmp_path: Path) -> None:
    model = run(tmp_path, tiny_recipe())
    logged = rows(tmp_path, "train")
    assert [row["step"] for row in logged] == [2, 4, 6]
    assert all(math.isfinite(value) for row in logged for value in row.values() if value != "train")
    assert [row["lr_main"] / 1e-4 for row in logged] == pytest.approx([0.5, 1.0, 1.0])
    assert [row["step"] for row in rows(tmp_path, "validation")] == [3, 6]
    for picture in sorted((tmp_path / "samples").iterdir()):
        with Image.open(picture) as opened:
            assert min(opened.size) > 100
    assert len(list((tmp_path / "samples").iterdir())) == 2
    loaded = SLATE.from_pretrained(find_checkpoint(tmp_path, "last"))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_training_lowers_the_losses(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        steps=150, warmup_steps=1, lr_main=3e-3, lr_dvae=3e-3, log_every=10, validate_every=150
    )
    run(tmp_path, recipe, images=4)
    logged = rows(tmp_path, "train")
    assert logged[-1]["mse"] < 0.8 * logged[0]["mse"]
    assert logged[-1]["cross_entropy"] < 0.8 * logged[0]["cross_entropy"]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tiny_recipe())
    run(tmp_path / "parts", tiny_recipe(steps=3))
    resumed = run(tmp_path / "parts", tiny_recipe(), resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_an_interrupt_saves_where_the_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", tiny_recipe())
    calls = iter(range(100))
    forward = SLATE.forward

    def interrupted(self: SLATE, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SLATE, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tiny_recipe())
    monkeypatch.setattr(SLATE, "forward", forward)
    assert find_checkpoint(tmp_path / "parts", "last").name == "step-000000002"
    resumed = run(tmp_path / "parts", tiny_recipe(), resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def _fill_disk(write: Callable[..., Any]) -> Callable[..., Any]:
    def full(*args: Any, **kwargs: Any) -> Any:
        write(*args, **kwargs)
        raise OSError(28, "No space left on device")

    return full


def test_a_full_disk_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, tiny_recipe(steps=3))
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    monkeypatch.setattr(
        checkpoints_module, "_optimizer_tensors", _fill_disk(checkpoints_module._optimizer_tensors)
    )
    with pytest.raises(
        OSError, match=r"step 6 could not be written .*No space left.* as they were"
    ):
        run(tmp_path, tiny_recipe(), resume=True)
    after = {p: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    assert after == before


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe(steps=5, validate_every=1, keep_checkpoints=2))
    kept = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    losses = {row["step"]: row["loss"] for row in rows(tmp_path, "validation")}
    best = f"step-{min(losses, key=losses.__getitem__):09d}"
    assert kept == {"step-000000004", "step-000000005", best}
    assert find_checkpoint(tmp_path, "best").name == best
    assert find_checkpoint(tmp_path, "last").name == "step-000000005"


def test_resuming_a_finished_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe())
    with pytest.raises(ValueError, match="steps must be above 6, where the run stands; got 6"):
        run(tmp_path, tiny_recipe(), resume=True)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe())
    other = tiny_model(num_slots=4)
    with pytest.raises(ValueError, match="of another configuration"):
        train(other, tiny_recipe(steps=9), Images(10), Images(6), tmp_path, resume=True)


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected a run folder"):
        find_checkpoint(tmp_path)


def test_validation_means_do_not_depend_on_the_batches() -> None:
    model, images = tiny_model(slot_init="learned"), Images(6, seed=1).tensors[0]
    whole = validate(model, [images], 0.5, seed=0)
    parts = validate(model, [images[:4], images[4:]], 0.5, seed=0)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_validation_is_deterministic_and_leaves_mode_and_noise_alone() -> None:
    model, images = tiny_model(), Images(6, seed=1).tensors[0]
    model.train()
    state = torch.get_rng_state()
    assert validate(model, [images], 0.5, seed=0) == validate(model, [images], 0.5, seed=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_unigram_entropy_is_that_of_the_token_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_model(), Images(2).tensors[0]
    ids = model.tokenize(images)
    counts = torch.bincount(ids.flatten()).double()
    p = counts[counts > 0] / counts.sum()
    entropy = float(-(p * p.log()).sum()) * ids.shape[1]
    assert validate(model, [images], 1.0, seed=0)["unigram_entropy"] == pytest.approx(entropy)
