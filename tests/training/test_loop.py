"""The loop: what it writes, resuming, interrupts, schedules."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastslots.models.slate import SLATE
from fastslots.training import find_checkpoint, loop, train
from fastslots.training import run as run_module
from fastslots.training.plateau import Plateau
from fastslots.training.run import TrainingRun
from fastslots.training.stopping import Stopping, Terminated
from tests.training.runs import rows, run, same_weights, signal_at
from tests.training.tiny import Images, tiny, tiny_model, tiny_recipe


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
    assert same_weights(model, loaded)
    assert set(loaded.state_dict()) == set(tiny_model().state_dict())


@pytest.mark.slow
def test_training_lowers_the_losses(tmp_path: Path) -> None:
    """First the dVAE alone, then all but it: tokens that change raise the cross-entropy as often as not."""
    trainable = tiny()
    for column, lr_dvae, lr_main, steps in [
        ("mse", 3e-3, 1e-9, 30),
        ("cross_entropy", 1e-9, 3e-3, 60),
    ]:
        folder = tmp_path / column
        folder.mkdir()
        recipe = tiny_recipe(
            steps=steps,
            warmup_steps=1,
            lr_main=lr_main,
            lr_dvae=lr_dvae,
            log_every=10,
            validate_every=steps,
        )
        train(trainable, recipe, Images(4), Images(6, seed=1), folder)
        logged = rows(folder, "train")
        # From the tenth step on; of six seeds the worst left 0.3 of the one and 0.7 of the other.
        assert logged[-1][column] < 0.8 * logged[0][column]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tiny_recipe(log_every=4))
    with pytest.MonkeyPatch.context() as patch:
        signal_at(3, patch, torch.optim.Adam, "step")  # between two lines of the log
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", tiny_recipe(log_every=4))
    resumed = run(tmp_path / "parts", tiny_recipe(log_every=4), resume=True)
    assert same_weights(whole, resumed)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("target", "name", "call", "saved"),
    [
        pytest.param(SLATE, "forward", 3, 2, id="in-a-forward"),
        pytest.param(torch.optim.Adam, "step", 4, 4, id="after-an-update"),
        pytest.param(run_module, "validate", 1, 3, id="in-a-validation"),
    ],
)
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_lets_the_step_finish_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    name: str,
    call: int,
    saved: int,
    number: int,
    raised: type[BaseException],
) -> None:
    recipe = tiny_recipe(patience=1, lr_main=0.1)
    whole = run(tmp_path / "whole", recipe)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_at(call, patch, target, name, number)
        with pytest.raises(raised) as stopped:
            run(tmp_path / "parts", recipe)
    assert type(stopped.value) is raised
    assert find_checkpoint(tmp_path / "parts", "last").name == f"step-{saved:09d}"
    assert same_weights(whole, run(tmp_path / "parts", recipe, resume=True))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert signal.getsignal(number) is before


def test_a_second_interrupt_is_obeyed_at_once_and_a_second_termination_is_not() -> None:
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stopping.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_without_a_checkpoint_resumes_from_the_start(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tiny_recipe())
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "metrics.jsonl").write_text(
        '{"step": 2, "kind": "train"}\n{"step": 4, "ki'
    )
    assert same_weights(whole, run(tmp_path / "fresh", tiny_recipe(), resume=True))
    assert rows(tmp_path / "fresh") == rows(tmp_path / "whole")


def training_run(folder: Path, **changes: Any) -> TrainingRun:
    return TrainingRun(tiny(), tiny_recipe(**changes), Images(4), Images(6), folder, resume=True)


def test_both_learning_rates_follow_the_plateau(tmp_path: Path) -> None:
    training = training_run(tmp_path)
    training.training_step(10, [Images(4).tensors[0]], factor=0.25)
    (adam,) = training.training_step.optimizers.all
    dvae, main = adam.param_groups
    assert (dvae["lr"], main["lr"]) == pytest.approx((0.25 * 3e-4, 0.25 * 1e-4))


def test_a_checkpoint_brings_back_where_the_run_stood(tmp_path: Path) -> None:
    with training_run(tmp_path) as training:
        training.step([Images(4).tensors[0]])
        training.state.plateau = Plateau(factor=0.25, best=12.5, stagnant=3)
        training.state.best_step = 1
        training.save()
    again = training_run(tmp_path)
    assert again.state == training.state
    assert len(again.state.interval) == 1


def test_only_a_lower_loss_marks_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5])
    fake = {"cross_entropy": 1.0, "mse": 1.0, "unigram_entropy": 1.0, "slots_used": 1.0}
    monkeypatch.setattr(run_module, "validate", lambda *_, **__: fake | {"loss": next(losses)})
    run(tmp_path, tiny_recipe(validate_every=2))
    assert find_checkpoint(tmp_path, "best").name == "step-000000004"


class Changed(Images):
    """Images that are no images of the model's from some number on."""

    def __init__(self, change: Any, first: int = 0, count: int = 10) -> None:
        super().__init__(count)
        self.change, self.first = change, first

    def __getitem__(self, index: int) -> Any:
        image = super().__getitem__(index)
        return self.change(image) if index >= self.first else image


WRONG = [
    pytest.param(
        lambda x: (255 * x).byte(), TypeError, "floating point", "torch.uint8", id="uint8"
    ),
    pytest.param(lambda x: 255 * x.round(), ValueError, "lie in [0, 1]", "0 to 255", id="255"),
    pytest.param(lambda x: 2 * x - 1, ValueError, "lie in [0, 1]", "-0.9", id="signed"),
    pytest.param(lambda x: x[:, :4], ValueError, "shape (3, 8, 8)", "(3, 4, 8)", id="size"),
    pytest.param(lambda x: x.mean(0), ValueError, "shape (3, 8, 8)", "(8, 8)", id="gray"),
    pytest.param(lambda x: (x, 0), TypeError, "be a tensor", "tuple: give a data set", id="labels"),
]


@pytest.mark.parametrize(("change", "error", "rule", "got"), WRONG)
@pytest.mark.parametrize("which", ["train_set", "validation_set"])
def test_images_that_are_not_the_models_are_refused_before_anything_is_written(
    tmp_path: Path, which: str, change: Any, error: type[Exception], rule: str, got: str
) -> None:
    sets = {"train_set": Images(10), "validation_set": Images(6)} | {which: Changed(change)}
    message = rf"^{which}\[0\] must .*{re.escape(rule)}.*; got {re.escape(got)}"
    with pytest.raises(error, match=message):
        train(tiny(), tiny_recipe(), **sets, run=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "error", "rule", "got"), WRONG)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_image_that_is_not_the_models_ends_the_run(
    tmp_path: Path, workers: int, change: Any, error: type[Exception], rule: str, got: str
) -> None:
    images = Changed(change, first=9)
    message = (
        rf"train_set\[9\] must .*{re.escape(rule)}.*; got {re.escape(got)}.*; checkpoints are as"
    )
    with pytest.raises(error, match=message) as raised:
        train(tiny(), tiny_recipe(), images, Images(6), tmp_path, num_workers=workers)
    assert len(str(raised.value).splitlines()) == 1


def test_a_later_held_out_image_is_refused_before_the_settings_are_written(tmp_path: Path) -> None:
    held_out = Changed(lambda x: 255 * x, first=5)
    with pytest.raises(ValueError, match=r"validation_set\[5\] must lie in \[0, 1\]; got"):
        train(tiny(), tiny_recipe(), Images(10), held_out, tmp_path, settings={"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("sizes", [(0, 6), (10, 0)])
def test_a_data_set_without_images_is_refused_before_anything_is_written(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    empty = "train_set" if not sizes[0] else "validation_set"
    with pytest.raises(ValueError, match=f"^{empty} must hold at least one image; got 0$"):
        train(tiny(), tiny_recipe(), *map(Images, sizes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_negative_number_of_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^num_workers must be at least 0; got -1$"):
        train(tiny(), tiny_recipe(), Images(10), Images(6), tmp_path, num_workers=-1)
    assert not list(tmp_path.iterdir())


def test_data_sets_that_differ_between_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "from_all", lambda _, sizes: [sizes, (9, 6)])
    with pytest.raises(
        ValueError, match="in every process; got 10 and 6, 9 and 6 images: see that"
    ):
        run(tmp_path, tiny_recipe())
    assert not list(tmp_path.iterdir())


def test_resuming_a_finished_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe())
    with pytest.raises(ValueError, match="steps must be above 6, where the run stands; got 6"):
        run(tmp_path, tiny_recipe(), resume=True)


def test_a_folder_that_holds_a_run_is_not_trained_in_anew(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe())
    with pytest.raises(FileExistsError, match="holds checkpoints of a run already: go on from its"):
        run(tmp_path, tiny_recipe())
