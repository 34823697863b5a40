"""The engine trains a model of which it knows the protocol alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastslots.training import find_checkpoint
from tests.training import forked
from tests.training.colours import ColourModel, train_colours
from tests.training.runs import rows


def test_another_model_trains_validates_draws_and_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train_colours(tmp_path)
    logged, held_out = rows(tmp_path, "train"), rows(tmp_path, "validation")
    assert [row["step"] for row in logged] == [3, 6, 9, 12]
    names = {"step", "kind", "error", "gradient_linf_norm_all", "lr_all"}
    assert all(row.keys() == names for row in logged)
    assert [row["step"] for row in held_out] == [4, 8, 12]
    assert all(row.keys() == {"step", "kind", "loss", "lr_factor"} for row in held_out)
    assert held_out[-1]["loss"] < 0.5 * held_out[0]["loss"]
    assert f"step 12: held-out error {held_out[-1]['loss']:.3f}\n" in capsys.readouterr().out
    with Image.open(tmp_path / "samples" / "step-000000012.png") as picture:
        assert picture.size == (1, 2)
    loaded = ColourModel.from_pretrained(find_checkpoint(tmp_path, "last"))
    assert loaded.config == model.config
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_another_model_goes_on_after_a_kill_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train_colours(whole)
    # The first image is loaded once more, to be checked; 26 more are those of six steps and a half.
    process = forked.process(train_colours, killed, killed_at=27)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [row["step"] for row in rows(killed)] == [3, 4, 6]
    train_colours(killed, resume=True)
    assert rows(killed) == rows(whole)
    last, expected = (find_checkpoint(folder, "last") for folder in (killed, whole))
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (last / file).read_bytes() == (expected / file).read_bytes()
