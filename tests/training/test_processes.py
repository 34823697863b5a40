"""Several processes: real ones, started as users start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil
import pytest
import torch

from fastslots.training import processes
from fastslots.training.checkpoints import last_step
from fastslots.training.processes import join_processes, make_accelerator
from tests.training import forked
from tests.training.runs import rows
from tests.training.tiny import TINY_FLAGS

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
)
RECIPE = (
    *("--precision", "float64", "--dropout", 0.1, "--batch-size", 8, "--log-every", 1),
    *("--warmup-steps", 10, "--tau-steps", 40, "--validate-every", 25, "--picture-images", 2),
    # Muon works in bfloat16 in any precision; of white colours, which are larger, rounding grows faster.
    *("--muon", 0, "--no-whiten"),
)


def launched(launcher: tuple[str, ...], *arguments: object, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "fastslots", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
    )


def assert_equal_rows(run: Path, whole: Path, steps: int) -> None:
    mine, theirs = rows(run), rows(whole)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs if row["step"] <= steps]
    for one, other in zip(mine, theirs, strict=False):
        kinds = one.pop("kind"), other.pop("kind")
        assert kinds[0] == kinds[1]
        # Rounding grows from step to step, from 1e-14 after 50 to 1e-7 after 100.
        if one["step"] <= 80:
            bound = 1e-9 if one["step"] <= 50 else 1e-6
            assert one == pytest.approx(other, rel=bound), one["step"]


@pytest.mark.slow
def test_two_processes_or_micro_batches_give_the_losses_of_one_and_agree_when_to_stop(
    tmp_path: Path, images: Path
) -> None:
    arguments = ("--data", images, *TINY_FLAGS, *RECIPE)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder, steps, accumulation in ((whole, 100, 1), (halves, 50, 2)):
        ended = forked.fastslots(
            *("train", "--output", folder, *arguments, "--steps", steps),
            *("--accumulation", accumulation),
        )
        assert ended.code == 0, ended.said
    assert_equal_rows(halves, whole, 50)

    with launched(TORCHRUN, "train", *arguments, "--steps", 100, folder=tmp_path) as process:
        while process.poll() is None and not list(tmp_path.glob("runs/*/samples/*50.png")):
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        (second,) = [worker for worker in workers if worker.environ().get("RANK") == "1"]
        second.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    (run,) = (tmp_path / "runs").iterdir()
    done = last_step(run)
    assert 50 <= done < 100, said
    assert "2 x cpu" in said
    assert said.count(f"step {done}/100 ") == 1
    assert f"terminated; go on with: fastslots train --resume runs/{run.name}" in said
    assert_equal_rows(run, whole, done)
    assert len(list((run / "tensorboard").iterdir())) == 1

    resumed = forked.fastslots("train", "--resume", run, "--device", "cpu", "--accumulation", 2)
    assert resumed.code == 0, resumed.said
    assert_equal_rows(run, whole, 100)
    assert json.loads((run / "config.json").read_text())["recipe"]["accumulation"] == 2


@pytest.mark.slow
def test_accelerate_launches_a_run(tmp_path: Path, images: Path) -> None:
    """The corrupt files that each of the processes meets, and their workers, are listed at the end."""
    corrupt = [
        images / "03.png",
        images / "06.png",
    ]  # in a batch of the second process, and of the first
    for path in corrupt:
        path.write_bytes(path.read_bytes()[:200])
    arguments = ("--data", images, *TINY_FLAGS, "--batch-size", 4, "--output", "run")
    steps = ("--steps", 4, "--workers", 1)
    with launched(ACCELERATE, "train", *arguments, *steps, folder=tmp_path) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "2 x cpu" in said
    assert last_step(tmp_path / "run") == 4
    assert len(rows(tmp_path / "run")) == 2
    assert said.count("corrupt images left out or replaced") == 1
    assert f"left out or replaced: 2 ({corrupt[0]}, {corrupt[1]})" in said


@pytest.mark.slow
def test_processes_refuse_a_changed_folder_together(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    arguments = ("--data", images, *TINY_FLAGS, "--batch-size", 4, "--output", run, "--steps", 1)
    assert forked.fastslots("train", *arguments).code == 0
    (images / "07.png").unlink()
    resumed = ("train", "--resume", run, "--steps", 2, "--device", "cpu")
    with launched(ACCELERATE, *resumed, folder=tmp_path) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("fastslots: error: ") == 1
    assert "1 removed, the first from train: '07.png'" in said


def test_one_process_changes_precision_from_run_to_run() -> None:
    cpu = torch.device("cpu")
    assert make_accelerator(cpu, "bf16").mixed_precision == "bf16"
    assert make_accelerator(cpu, "float32").mixed_precision == "no"
    assert join_processes(cpu).num_processes == 1


def test_processes_cannot_share_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "device must be 'auto', 'cpu' or 'cuda' with several processes; got 'cuda:1'"
    with pytest.raises(ValueError, match=message):
        join_processes(torch.device("cuda:1"))


def test_a_process_may_name_the_cuda_device_that_is_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model's parameters say on which device they are, number included."""

    class State:
        device = torch.device("cuda:1")

        def __init__(self, cpu: bool) -> None:
            assert not cpu

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for device in ("cuda", "cuda:1"):
        assert join_processes(torch.device(device)).device == torch.device("cuda:1")


def test_a_setup_that_shards_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_SUPPORTED", ("MULTI_CPU", "MULTI_GPU"))
    with pytest.raises(ValueError, match="with a whole model each; got NO"):
        make_accelerator(torch.device("cpu"), "float32")


class Place(NamedTuple):
    """A process among two."""

    is_main_process: bool
    num_processes: int = 2


def test_an_error_of_the_main_process_is_every_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on: list[Any] = []

    def broadcast(_: object, value: Any) -> Any:
        passed_on.append(value)
        return passed_on[0]

    def fail() -> None:
        raise FileExistsError("occupied")

    monkeypatch.setattr(processes, "from_main", broadcast)
    with pytest.raises(FileExistsError, match="occupied"):
        processes.on_main(cast(Any, Place(is_main_process=True)), fail)
    with pytest.raises(OSError, match="occupied"):
        processes.on_main(cast(Any, Place(is_main_process=False)), pytest.fail)
