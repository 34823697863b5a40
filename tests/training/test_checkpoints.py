"""Checkpoints: which are kept, what a kill leaves, what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastslots.models.slate import SLATE
from fastslots.training import find_checkpoint, train
from fastslots.training.checkpoints import (
    RunState,
    last_step,
    save_checkpoint,
    tidy,
)
from fastslots.training.optimizers import Optimizers
from fastslots.training.plateau import Plateau
from fastslots.training.restoring import DamagedError, restore_checkpoint
from tests.training.runs import rows, run
from tests.training.tiny import Images, tiny, tiny_model, tiny_recipe


def trained(dtype: torch.dtype = torch.float32, muon: float = 0.0) -> tuple[SLATE, Optimizers]:
    model = tiny_model().to(dtype)
    optimizers = Optimizers({"all": [p for p in model.parameters() if p.requires_grad]}, muon)
    optimizers.set_rates({"all": 1e-3})
    out = model(Images(2).tensors[0].to(dtype))
    torch.autograd.backward(out.cross_entropy + out.mse)
    optimizers.step()
    return model, optimizers


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kept(optimizers: Optimizers) -> list[torch.Tensor]:
    return [state[key] for _, key, state in optimizers.entries()]


@pytest.mark.parametrize("muon", [0.0, 20.0])
def test_a_checkpoint_brings_everything_back(tmp_path: Path, muon: float) -> None:
    model, optimizers = trained(muon=muon)
    state = RunState(7, 3, Plateau(factor=0.5, best=2.25, stagnant=1), [[0.1, 0.2, 0.3, 0.4]])
    saved = save_checkpoint(tmp_path, state, model, optimizers, keep=1)
    fresh, fresh_optimizers = trained(muon=muon)
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *kept(fresh_optimizers)):
            tensor.zero_()
    assert restore_checkpoint(saved, fresh, fresh_optimizers) == state
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)
    )
    before, after = kept(optimizers), kept(fresh_optimizers)
    assert all(map(torch.equal, before, after))
    assert len(before) > len(list(model.parameters())) / 2


def test_a_checkpoint_may_be_taken_up_in_another_precision(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, RunState(1), *trained(), keep=1)
    model, optimizers = trained(torch.float64)
    restore_checkpoint(saved, model, optimizers)
    moments = [state[key].dtype for _, key, state in optimizers.entries() if key == "exp_avg"]
    assert set(moments) == {torch.float64}
    optimizers.step()


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, RunState(1), *trained(), keep=1)
    assert {path.suffix for path in saved.iterdir()} == {".json", ".safetensors"}


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe(steps=5, validate_every=1, keep_checkpoints=2))
    losses = {row["step"]: row["loss"] for row in rows(tmp_path, "validation")}
    best = f"step-{min(losses, key=losses.__getitem__):09d}"
    assert names(tmp_path / "checkpoints") == {"step-000000004", "step-000000005", best}
    assert find_checkpoint(tmp_path, "best").name == best
    assert find_checkpoint(tmp_path, "last").name == "step-000000005"


def test_an_old_best_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save_checkpoint(tmp_path, RunState(step, best_step=4), *trained(), keep=1)
    assert names(tmp_path / "checkpoints") == {"step-000000004", "step-000000008"}
    assert find_checkpoint(tmp_path).name == "step-000000004"


def test_a_mark_of_the_best_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, RunState(step, best_step=2), *trained(), keep=1)
    for content in ("{}", "garbage", '{"best_step": "x"}', '{"best_step": 3}'):
        (find_checkpoint(tmp_path, "last") / "state.json").write_text(content)
        assert find_checkpoint(tmp_path, "best").name == "step-000000004"


def test_a_step_saved_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    for factor in (1.0, 0.5):
        state = RunState(3, plateau=Plateau(factor=factor))
        saved = save_checkpoint(tmp_path, state, *trained(), keep=1)
    assert json.loads((saved / "state.json").read_text())["plateau"]["factor"] == 0.5
    assert names(tmp_path / "checkpoints") == {"step-000000003"}


def test_a_replacement_that_fails_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_checkpoint(tmp_path, RunState(3, best_step=1), *trained(), keep=1)
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match=r"step 3 could not be written .*Input/output .* as they wer"):
        save_checkpoint(tmp_path, RunState(3, best_step=2), *trained(), keep=1)
    assert json.loads((saved / "state.json").read_text())["best_step"] == 1
    assert names(tmp_path / "checkpoints") == {"step-000000003"}


def test_what_a_kill_left_is_tidied_up(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, RunState(3), *trained(), keep=2)
    save_checkpoint(tmp_path, RunState(6), *trained(), keep=2)
    checkpoints, samples = tmp_path / "checkpoints", tmp_path / "samples"
    (checkpoints / "step-000000006").rename(checkpoints / ".step-000000006.replaced")
    shutil.copytree(checkpoints / "step-000000003", checkpoints / ".step-000000003.replaced")
    (checkpoints / ".step-000000009.partial").mkdir()
    (checkpoints / ".step-000000009.partial" / "state.json").write_text("{")
    samples.mkdir()
    (samples / ".step-000000009.partial.png").write_text("half")
    (tmp_path / ".config.partial.json").write_text("{")
    assert last_step(tmp_path) == 3
    tidy(tmp_path)
    assert names(checkpoints) == {"step-000000003", "step-000000006"}
    assert last_step(tmp_path) == 6
    assert names(tmp_path) == {"checkpoints", "samples"}
    assert not names(samples)


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
    saved = save_checkpoint(tmp_path, RunState(3), *trained(), keep=1)
    (saved / name).write_bytes(content)
    with pytest.raises(DamagedError, match=r"step-000000003 is damaged"):
        restore_checkpoint(saved, *trained())


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, RunState(3), *trained(), keep=1)
    other = tiny(num_slots=4)
    with pytest.raises(
        ValueError, match=r"of another configuration: it has num_slots 3 in place of 4"
    ):
        train(other, tiny_recipe(steps=9), Images(10), Images(6), tmp_path, resume=True)


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected a run folder"):
        find_checkpoint(tmp_path)
