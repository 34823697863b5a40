"""What a run writes down while it trains."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastslots.models.slate import TrainableSLATE
from fastslots.training import run as run_module
from fastslots.training.metrics import Interval, RunLog, memory_mib
from fastslots.training.progress import TrainingProgress
from fastslots.training.step import DivergedError
from tests.training.runs import rows, run
from tests.training.tiny import tiny_recipe

LOGGED = {
    *("cross_entropy", "mse", "gradient_linf_norm_dvae", "gradient_linf_norm_main"),
    *("lr_dvae", "lr_main", "tau", "relative_residual", "slots_used"),
    *("images_per_second", "memory_mib"),
}
VALIDATED = {
    *("cross_entropy", "mse", "loss", "unigram_entropy", "lr_factor"),
    *("relative_residual", "slots_used"),
}


def board(run: Path) -> EventAccumulator:
    return EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    ).Reload()


def test_every_row_and_picture_is_in_tensorboard(tmp_path: Path) -> None:
    run(tmp_path, tiny_recipe())
    shown = board(tmp_path)
    tags = {f"train/{name}" for name in LOGGED} | {f"validation/{name}" for name in VALIDATED}
    assert set(shown.Tags()["scalars"]) == tags
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        for name in row.keys() - {"step", "kind", "time"}:
            values = {e.step: e.value for e in shown.Scalars(f"{row['kind']}/{name}")}
            assert values[row["step"]] == pytest.approx(row[name], rel=1e-6)
    assert [event.step for event in shown.Images("samples")] == [3, 6]
    with Image.open(tmp_path / "samples" / "step-000000006.png") as picture:
        event = shown.Images("samples")[-1]
        assert (event.width, event.height) == picture.size


def test_steps_done_again_are_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "draw", full)
        patch.setattr(run_module, "save_checkpoint", lambda *_, **__: None)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path, tiny_recipe())
    assert [row["step"] for row in rows(tmp_path)] == [2, 3]
    run(tmp_path, tiny_recipe(), resume=True)
    shown = board(tmp_path)
    assert [event.step for event in shown.Scalars("train/mse")] == [2, 4, 6]
    assert [event.step for event in shown.Scalars("validation/mse")] == [3, 6]
    assert [row["step"] for row in rows(tmp_path)] == [2, 3, 4, 6, 6]


def test_half_a_line_and_later_steps_are_dropped(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines = ['{"step": 2, "kind": "train"}', '{"step": 4, "kind": "train"}', '{"step": 2, "ki']
    metrics.write_text("\n".join(lines))
    RunLog(tmp_path, 3).close()
    assert metrics.read_text() == lines[0] + "\n"


def test_metrics_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics.jsonl"):
        run(tmp_path, tiny_recipe())


def test_an_interval_names_the_first_step_that_diverged() -> None:
    columns = ["cross_entropy", "mse", "gradient_linf_norm_dvae", "gradient_linf_norm_main"]
    interval = Interval(columns, [[1.0, 2.0, 3.0, 4.0]], torch.device("cpu"))
    interval.add(torch.tensor([1.0, math.inf, 3.0, 4.0]))
    interval.add(torch.tensor([math.nan] * 4))
    message = (
        r"step 8 has a loss or gradient that is not finite: cross_entropy 1, mse inf, "
        r"gradient_linf_norm_dvae 3, gradient_linf_norm_main 4"
    )
    with pytest.raises(DivergedError, match=message):
        interval.means(9, lambda rows: rows)


def test_memory_is_that_of_this_process() -> None:
    held = memory_mib(torch.device("cpu"))
    block = torch.ones(64 * 2**18)
    assert 50 < memory_mib(torch.device("cpu")) - held < 80
    assert len(block)


def test_progress_is_shown_by_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"cross_entropy": 1.25, "mse": 2.0, "slots_used": 3.5, "images_per_second": 1234.0}
    for shown in (True, False):
        progress = TrainingProgress(3, 9, TrainableSLATE, shown=shown)
        progress.start()
        progress.advance()
        progress.report(4, row)
        progress.stop()
    assert capsys.readouterr().out == (
        "step 4/9  cross-entropy 1.2  mse 2.0  slots used 3.5  1234 images/s\n"
    )
