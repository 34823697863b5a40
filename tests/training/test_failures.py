"""What ends a run from outside or within: one clear line, and nothing lost."""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from fastslots.training import find_checkpoint, train
from fastslots.training import step as step_module
from fastslots.training.folder import lock_run
from fastslots.training.run import TrainingRun
from fastslots.training.step import DivergedError
from tests.training import forked
from tests.training.runs import rows, signal_at
from tests.training.tiny import TINY_FLAGS, Images, tiny, tiny_recipe

LONG = ("--steps", 100_000, "--batch-size", 4, "--log-every", 1, *TINY_FLAGS)


def one_line(ended: forked.Ended) -> str:
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    (line,) = [line for line in ended.said.splitlines() if "error" in line.lower()]
    return line


@pytest.mark.slow
def test_a_run_folder_that_vanishes_is_named_and_not_made_anew(
    tmp_path: Path, images: Path
) -> None:
    folder = tmp_path / "run"
    command = forked.Command("train", "--data", images, "--output", folder, *LONG)
    command.wait_for(folder / "metrics.jsonl")
    folder.rename(tmp_path / "elsewhere")
    line = one_line(command.ended())
    assert f"the run folder {folder} has vanished" in line
    assert not folder.exists()


def test_a_run_folder_that_vanishes_before_a_checkpoint_or_picture_is_not_made_anew(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with TrainingRun(tiny(), tiny_recipe(), Images(4), Images(6), folder, resume=False) as training:
        training.step([Images(4).tensors[0]])
        folder.rename(tmp_path / "elsewhere")
        for write in (training.save, training._draw, training.validate):
            with pytest.raises(FileNotFoundError, match=r"the run folder .*run has vanished"):
                write()
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_folder_that_vanishes_is_named(tmp_path: Path, images: Path, workers: int) -> None:
    folder = tmp_path / "run"
    command = forked.Command(
        *("train", "--data", images, "--output", folder, *LONG, "--validate-every", 3),
        *("--workers", workers),
    )
    command.wait_for(folder / "checkpoints" / "step-000000003" / "state.json")
    images.rename(tmp_path / "elsewhere")
    line = one_line(command.ended())
    assert "images could not be loaded" in line
    assert f"{images}/" in line
    images.with_name("elsewhere").rename(images)
    done = int(find_checkpoint(folder, "last").name[5:])
    again = forked.fastslots("train", "--resume", folder, "--steps", done + 2, "--device", "cpu")
    assert again.code == 0, again.said


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_the_command_after_a_checkpoint(
    tmp_path: Path, images: Path, number: int, code: int, word: str
) -> None:
    folder = tmp_path / "run"
    command = forked.Command("train", "--data", images, "--output", folder, *LONG, "--workers", 1)
    command.wait_for(folder / "metrics.jsonl")
    for worker in psutil.Process(command.process.pid).children():  # systems signal whole groups
        worker.send_signal(number)
    psutil.Process(command.process.pid).send_signal(number)
    ended = command.ended()
    assert ended.code == code, ended.said
    assert ended.said.splitlines()[-1] == (f"{word}; go on with: fastslots train --resume {folder}")
    last = rows(folder)[-1]["step"]
    assert find_checkpoint(folder, "last").name == f"step-{last:09d}"
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_at_that_step(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "run"
    recipe = (*TINY_FLAGS, "--batch-size", 4, "--steps", 3, "--validate-every", 3)
    begun = forked.fastslots("train", "--data", images, "--output", folder, *recipe)
    assert begun.code == 0, begun.said
    resume = ("train", "--resume", folder, "--device", "cpu", "--steps", 9)
    line = one_line(forked.fastslots(*resume, "--lr-dvae", 1e30, "--no-clip"))
    assert "step 5 has a loss or gradient that is not finite: cross_entropy " in line
    assert "mse nan" in line or "mse inf" in line
    assert "its last checkpoint, of step 3, is whole" in line
    assert f"such as: fastslots train --resume {folder} --lr-dvae 5e+29 --lr-main " in line
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000003"]
    again = forked.fastslots(*resume, "--lr-dvae", 1e-4, "--clip", 1)
    assert again.code == 0, again.said


def test_a_run_that_diverged_before_a_checkpoint_begins_again_as_it_says(
    tmp_path: Path, images: Path
) -> None:
    folder = tmp_path / "a run"
    recipe = (*TINY_FLAGS, "--batch-size", 4, "--steps", 6, "--log-every", 1)
    wild = ("--lr-dvae", 1e30, "--no-clip")
    line = one_line(forked.fastslots("train", "--data", images, "--output", folder, *recipe, *wild))
    advice = line.partition("it has no checkpoint yet: begin again with other settings, such as: ")[
        2
    ]
    program, *command = shlex.split(advice)
    assert program == "fastslots"
    again = forked.fastslots(*command, "--device", "cpu", "--lr-dvae", 1e-4)
    assert again.code == 0, again.said
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_as_it_says(
    tmp_path: Path, images: Path
) -> None:
    folder = tmp_path / "a run"
    recipe = (*TINY_FLAGS, "--batch-size", 4, "--steps", 6, "--validate-every", 3)
    begun = forked.fastslots("train", "--data", images, "--output", folder, *recipe)
    assert begun.code == 0, begun.said
    checkpoints = folder / "checkpoints"
    whole = [path.read_bytes() for path in sorted((checkpoints / "step-000000006").iterdir())]
    resume = ("train", "--resume", folder, "--device", "cpu", "--steps", 7)
    for last, earlier in (
        (6, "from step-000000003, the one before it,"),
        (3, "from the first step"),
    ):
        damaged = checkpoints / f"step-{last:09d}"
        (damaged / "optimizer.safetensors").write_bytes(b"")
        line = one_line(forked.fastslots(*resume))
        assert f"the checkpoint in {damaged} is damaged: " in line
        advice = line.partition(f"; to go on {earlier} put it aside: ")[2]
        subprocess.run(shlex.split(advice), check=True)
    again = forked.fastslots(*resume, "--steps", 6)
    assert again.code == 0, again.said
    assert whole == [
        path.read_bytes() for path in sorted((checkpoints / "step-000000006").iterdir())
    ]
    assert (folder / "damaged-step-000000003" / "model.safetensors").is_file()


class Poisoned(Images):
    """Images of which the eighth is no number, which a batch of step 2 or 3 has."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index) * (math.nan if index == 7 else 1.0)


def test_the_weights_are_as_before_the_step_that_diverged(tmp_path: Path) -> None:
    trainable = tiny()
    with pytest.raises(DivergedError, match=r"step \d .* not finite: .*; it has no checkpoint yet"):
        train(trainable, tiny_recipe(validate_every=6), Poisoned(12), Images(6), tmp_path)
    assert all(parameter.isfinite().all() for parameter in trainable.parameters())


@pytest.mark.parametrize("noticed_by", ["log", "save"])
def test_what_no_step_waited_for_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noticed_by: str
) -> None:
    """As on CUDA, where the step itself does not look."""
    monkeypatch.setattr(step_module, "check_finite", lambda *_: None)
    recipe = tiny_recipe(steps=4, validate_every=100, log_every=1 if noticed_by == "log" else 100)
    if noticed_by == "save":  # an interrupt saves before the first line of the log
        signal_at(3, monkeypatch, TrainingRun, "step")
    with pytest.raises(DivergedError, match=r"step [123] has a loss or gradient that is not fin"):
        train(tiny(), recipe, Poisoned(12), Images(6), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))
    logged = rows(tmp_path) if (tmp_path / "metrics.jsonl").exists() else []
    assert all(math.isfinite(row["mse"]) for row in logged)
    assert len(logged) < 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, value: float) -> None:
    with TrainingRun(
        tiny(), tiny_recipe(), Images(4), Images(6), tmp_path, resume=False
    ) as training:
        with torch.no_grad():
            training.model.out.weight[0, 0] = value
        training.state.step = 5
        with pytest.raises(DivergedError, match="the weights after step 5 are not finite"):
            training.save()
        with torch.no_grad():
            training.model.dvae.encoder[-1].bias[0] = value
        with pytest.raises(DivergedError, match="the held-out loss after step 5 is nan"):
            training.validate()
    assert not (tmp_path / "checkpoints").exists()


def test_a_refused_resumption_leaves_the_settings_alone(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "run"
    recipe = (*TINY_FLAGS, "--batch-size", 4, "--steps", 3)
    assert forked.fastslots("train", "--data", images, "--output", folder, *recipe).code == 0
    before = (folder / "config.json").read_bytes()
    resume = ("train", "--resume", folder, "--device", "cpu")
    line = one_line(forked.fastslots(*resume, "--steps", 2, "--lr-main", 0.5))
    assert "steps must be above 3, where the run stands; got 2" in line
    (folder / "checkpoints" / "step-000000003" / "state.json").write_text("{")
    line = one_line(forked.fastslots(*resume, "--steps", 9, "--lr-main", 0.5))
    assert "step-000000003 is damaged" in line
    assert (folder / "config.json").read_bytes() == before


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with lock_run(folder):
        arguments = ("--data", images, "--output", folder, *LONG)
        line = one_line(forked.fastslots("train", *arguments))
    assert line == (
        f"fastslots: error: another process is training in {folder}: wait until it has ended"
    )
    assert [path.name for path in folder.iterdir()] == [".lock"]
