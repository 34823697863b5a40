"""A run that is killed again and again ends as one that was not."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastslots.training import find_checkpoint
from fastslots.training.checkpoints import last_step
from tests.training import forked
from tests.training.runs import rows
from tests.training.tiny import TINY_FLAGS

KILLS = int(os.environ.get("FASTSLOTS_KILLS", "6"))
STEPS = 12 + 4 * KILLS
RECIPE = (
    *("--steps", STEPS, "--batch-size", 4, "--accumulation", 2, "--warmup-steps", 20),
    *("--tau-steps", 25, "--lr-main", 0.03, "--patience", 1, "--log-every", 3),
    *("--validate-every", 4, "--validation-images", 3, "--picture-images", 1),
)


def count_rows(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_somewhere(command: forked.Command, run: Path, chance: random.Random) -> bool:
    """Kills a run soon, or after some more rows of its log and a moment; whether it was still there."""
    process = command.process
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 2))
    else:
        enough = count_rows(run) + chance.randint(1, 4)
        while count_rows(run) < enough and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.06))
    process.kill()
    process.join()
    return process.exitcode == -9


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * KILLS)
def test_killed_runs_lose_nothing(tmp_path: Path, images: Path) -> None:
    arguments = ("--data", images, *RECIPE, *TINY_FLAGS)
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, said = forked.fastslots("train", "--output", whole, *arguments)
    assert code == 0, said

    chance, killed = random.Random(KILLS), 0
    while killed < KILLS and last_step(run) < STEPS:
        begun = (run / "config.json").exists()
        start = ("--resume", run) if begun else ("--output", run, *arguments)
        command = forked.Command("train", *start, "--device", "cpu")
        killed += kill_somewhere(command, run, chance)
        command.ended()
    # One that was killed after its last checkpoint has nothing left to do, but perhaps to tidy up.
    done = last_step(run) == STEPS
    code, said = forked.fastslots("train", "--resume", run, "--device", "cpu")
    assert code == (2 if done else 0), said
    assert ("where the run stands" in said) == done

    assert killed >= KILLS // 2
    assert rows(run) == rows(whole)
    assert {row["lr_factor"] for row in rows(run, "validation")} > {1.0}
    for which in ("best", "last"):
        mine, theirs = find_checkpoint(run, which), find_checkpoint(whole, which)
        assert mine.name == theirs.name
        for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
            assert (mine / file).read_bytes() == (theirs / file).read_bytes(), file
    for folder in ("checkpoints", "samples"):
        assert sorted(os.listdir(run / folder)) == sorted(os.listdir(whole / folder))
    assert shown(run) == shown(whole)


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    everything = {"scalars": 0, "images": 0}  # by default the reader keeps a sample of them
    board = EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()
    scalars = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if not tag.endswith(("images_per_second", "memory_mib"))
    }
    return scalars | {"images": [(event.step, 0.0) for event in board.Images("samples")]}
