"""The autoencoder is trained, resumed and shared among processes as any other model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastslots.models.registry import load_model
from fastslots.models.whitening import Whitening
from fastslots.training import find_checkpoint
from tests.training import forked
from tests.training.runs import rows
from tests.training.test_processes import TORCHRUN
from tests.training.tiny import Images
from tests.training.tiny_autoencoder import train_autoencoder

FILES = ("model.safetensors", "config.json", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize(("precision", "muon"), [("float32", 20.0), ("bf16", 20.0), ("bf16", 0.0)])
def test_an_autoencoder_goes_on_after_a_kill_with_the_same_bits_and_the_same_whitening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, muon: float
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    numbers = {"precision": precision, "muon": muon}
    train_autoencoder(whole, **numbers)
    # The first image is loaded once more, to be checked, all ten are whitened; 26 more are those of six
    # steps and a half.
    process = forked.process(train_autoencoder, killed, killed_at=37, **numbers)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [row["step"] for row in rows(killed)] == [3, 4, 6]
    monkeypatch.setattr(Whitening, "fit", lambda *_: pytest.fail("fitted again"))
    train_autoencoder(killed, resume=True, **numbers)
    assert rows(killed) == rows(whole)
    last, expected = (find_checkpoint(folder, "last") for folder in (killed, whole))
    for file in FILES:
        assert (last / file).read_bytes() == (expected / file).read_bytes(), file


def test_a_run_is_logged_and_its_model_is_whitened_by_its_own_images(tmp_path: Path) -> None:
    model = train_autoencoder(tmp_path)
    logged, held_out = rows(tmp_path, "train"), rows(tmp_path, "validation")
    assert [row["step"] for row in logged] == [3, 6, 9, 12]
    assert logged[0].keys() == {
        *("step", "kind", "colour_error", "entropy_penalty", "gradient_l2_norm_main", "lr_main"),
        *("entropy_weight", "squared_error", "relative_residual", "slots_used"),
    }
    assert [row["entropy_weight"] for row in logged] == pytest.approx([0, 0.1 * 3 / 4, 0.1, 0.1])
    assert held_out[0].keys() == {
        *("step", "kind", "loss", "lr_factor"),
        *("squared_error", "relative_residual", "slots_used"),
    }
    whitening = Whitening((3, 8, 8))
    whitening.fit(Images(10))
    loaded = load_model(find_checkpoint(tmp_path, "last"))
    for name, tensor in whitening.state_dict().items():
        assert torch.equal(loaded.whitening.state_dict()[name], tensor)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, accumulation: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_autoencoder(whole, precision="float64")
    train_autoencoder(parts, precision="float64", accumulation=accumulation)
    assert_equal_but_rounding(parts, whole)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    train_autoencoder(whole, precision="float64")
    ended = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "tests.training.tiny_autoencoder", shared],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("step 12: held-out error") == 1
    assert_equal_but_rounding(shared, whole)


def assert_equal_but_rounding(run: Path, whole: Path) -> None:
    mine, theirs = rows(run), rows(whole)
    assert len(mine) == len(theirs) == 7
    for one, other in zip(mine, theirs, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-9)
