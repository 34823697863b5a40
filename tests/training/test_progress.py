"""What someone who watches a training run sees."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fastslots.models.slate import TrainableSLATE
from fastslots.training.progress import TrainingProgress
from fastslots.training.run import TrainingRun
from tests.training.tiny import Images, tiny, tiny_recipe

ROW = {
    "cross_entropy": 138.94,
    "mse": 12.31,
    "slots_used": 4.25,
    "images_per_second": 1234.0,
}


@pytest.mark.parametrize("width", [60, 80, 150])
def test_a_narrow_terminal_shows_the_whole_bar(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    progress = TrainingProgress(123_456, 250_000, TrainableSLATE)
    progress.report(123_456, ROW)
    shown = Console(file=io.StringIO(), width=width, color_system=None)
    shown.print(progress.bar.get_renderable())
    text = shown.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    words = "training 123456/250000 -:--:-- left cross-entropy 138.9 mse 12.3 slots used 4.2 1234 images/s"
    assert set(words.split()) <= set(text.split())


@pytest.mark.parametrize("compile", [True, False])
def test_compiling_is_announced_before_the_first_step(
    compile: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.compile", lambda model, **_: model)
    recipe = tiny_recipe(compile=compile)
    with TrainingRun(tiny(), recipe, Images(4), Images(6), tmp_path, resume=False):
        said = capsys.readouterr().out
    assert said == compile * "compiling the training step: the first takes minutes on a CPU\n"


def test_one_process_alone_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    TrainingProgress(0, 1, TrainableSLATE, shown=False).say("hello")
    assert capsys.readouterr().out == ""
