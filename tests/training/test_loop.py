"""The loop: files, resuming, interrupts, full disks."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastslots.slate import SLATE
from fastslots.training import Recipe, find_checkpoint, train
from fastslots.training import checkpoints as checkpoints_module
from fastslots.training import loop as loop_module
from fastslots.training.recipe import Plateau
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


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> None:
    """Sends an interrupt during the given call (from 1) of a function."""
    original, calls = getattr(target, name), iter(range(1, 1_000))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(target, name, interrupted)


@pytest.mark.parametrize(
    ("target", "name", "call", "saved"),
    [
        pytest.param(SLATE, "forward", 2, 2, id="in-a-forward"),
        pytest.param(torch.optim.Adam, "step", 4, 4, id="after-an-update"),
        pytest.param(loop_module, "validate", 1, 3, id="in-a-validation"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, call: int, saved: int
) -> None:
    whole = run(tmp_path / "whole", tiny_recipe(patience=1, lr_main=0.1))
    with monkeypatch.context() as patch:
        interrupt_at(call, patch, target, name)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", tiny_recipe(patience=1, lr_main=0.1))
    assert find_checkpoint(tmp_path / "parts", "last").name == f"step-{saved:09d}"
    resumed = run(tmp_path / "parts", tiny_recipe(patience=1, lr_main=0.1), resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    validations = [rows(tmp_path / part, "validation") for part in ("whole", "parts")]
    assert validations[0] == validations[1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_without_a_checkpoint_resumes_from_the_start(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tiny_recipe())
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "metrics.jsonl").write_text(
        '{"step": 2, "kind": "train"}\n{"step": 4, "ki'
    )
    resumed = run(tmp_path / "fresh", tiny_recipe(), resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    assert [row["step"] for row in rows(tmp_path / "fresh", "train")] == [2, 4, 6]


def test_gradients_are_clipped_by_their_largest_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest: list[float] = []
    update = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *args: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        largest.append(max(float(grad.abs().max()) for grad in grads if grad is not None))
        return update(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    run(tmp_path, tiny_recipe(clip=0.01))
    logged = [row["gradient_linf_norm"] for row in rows(tmp_path, "train")]
    assert min(logged) > 0.1
    assert largest == pytest.approx([0.01] * 6, rel=1e-3)


def test_both_learning_rates_follow_the_plateau(tmp_path: Path) -> None:
    trainer = loop_module._Trainer(tiny_model(), tiny_recipe(), Images(6), tmp_path)
    trainer.plateau = Plateau(factor=0.25)
    trainer.step(10, Images(4).tensors[0])
    dvae, main = trainer.optimizer.param_groups
    assert (dvae["lr"], main["lr"]) == pytest.approx((0.25 * 3e-4, 0.25 * 1e-4))


def test_a_checkpoint_brings_back_the_plateau(tmp_path: Path) -> None:
    trainer = loop_module._Trainer(tiny_model(), tiny_recipe(), Images(6), tmp_path)
    trainer.step(0, Images(4).tensors[0])
    trainer.plateau = Plateau(factor=0.25, best=12.5, stagnant=3)
    trainer.save(1, best=False)
    fresh = loop_module._Trainer(tiny_model(), tiny_recipe(), Images(6), tmp_path)
    assert fresh.resume() == 1
    assert fresh.plateau == trainer.plateau


def test_only_a_lower_loss_marks_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5])
    fake = {"cross_entropy": 1.0, "mse": 1.0, "unigram_entropy": 1.0}
    monkeypatch.setattr(loop_module, "validate", lambda *_: fake | {"loss": next(losses)})
    run(tmp_path, tiny_recipe(validate_every=2))
    assert find_checkpoint(tmp_path, "best").name == "step-000000004"


def test_validation_decodes_one_hot_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_model(), Images(4).tensors[0]
    mse = validate(model, [images], 0.5, seed=0)["mse"]
    recon = model.eval().dvae.decode_ids(model.tokenize(images))
    assert mse == pytest.approx(float((images - recon).square().sum().detach()) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.safetensors", b"no tensors"),
        ("state.json", b"{}"),
        ("state.json", b"garbage"),
        ("state.json", b'{"step": 3, "plateau": {"speed": 1}}'),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run(tmp_path, tiny_recipe(steps=3))
    folder = find_checkpoint(tmp_path, "last")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"step-000000003 is damaged"):
        run(tmp_path, tiny_recipe(), resume=True)


def test_a_damaged_mark_of_the_best_counts_as_none(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe())
    (tmp_path / "checkpoints" / "best.json").write_text("{}")
    assert find_checkpoint(tmp_path, "best").name == "step-000000006"


def test_metrics_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics.jsonl could not be written: .* as they were"):
        run(tmp_path, tiny_recipe())


def test_a_picture_that_cannot_be_written_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "draw_panels", _fill_disk(lambda *_: None))
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, tiny_recipe())
    assert find_checkpoint(tmp_path, "last").name == "step-000000003"


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
