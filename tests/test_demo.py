"""The demo: trained for real at a size of seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastslots.data.source import DataSource
from fastslots.demo.processes import render, run_together
from fastslots.demo.record import CURVES, LEGEND, ArmRow, DemoResults, demo_markdown
from fastslots.demo.run import measure, run_demo
from fastslots.environment import describe_environment
from tests.cli.test_evaluate_command import SCENES, write_run


def row(case: str, **metrics: float) -> ArmRow:
    curve = [[float(step), 1.0, 0.5, 9.0, 4.0] for step in range(1, 3)]
    found: dict[str, list[float | None]] = {name: [mean, 0.01] for name, mean in metrics.items()}
    measured = {"4": found, "9": {"fg_ari": [0.95, 0.01]}}
    return ArmRow(case, {}, {"clip": None}, 50.0, 2**21, curve, 320, measured)


@pytest.mark.slow
def test_a_dry_run_trains_measures_and_draws_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    results = run_demo(Path("demo"), 3, said.append, tiny=True)
    implicit, unrolled = results.rows
    assert (implicit.case, unrolled.case) == ("implicit", "unrolled")
    assert implicit.model["gradient"] == "neumann"
    assert unrolled.model["gradient"] == "unrolled"
    # The same function of the same images: the implicit gradient takes its tracked step after the iterations.
    assert unrolled.model["num_iterations"] == implicit.model["num_iterations"] + 1
    assert implicit.recipe["seed"] == unrolled.recipe["seed"] == 3
    assert [line[0] for line in implicit.curve] == [2, 4]
    assert unrolled.kept_bytes > implicit.kept_bytes > 0
    for measured in (implicit, unrolled):
        assert list(measured.metrics) == ["4", "9"]
        assert all(0 <= found["mean_best_overlap"][0] <= 1 for found in measured.metrics.values())
    assert DemoResults.load(Path("demo/demo.json")).rows == results.rows
    for name in ("objects", "beside", "curves"):
        with Image.open(f"demo/{name}.png") as picture:
            assert picture.width > 500
    assert any(line.startswith("unrolled: step 4/4") for line in said)
    assert (Path("demo") / "implicit" / "checkpoints").is_dir()


def test_rendered_scenes_are_found_in_the_cache(tmp_path: Path) -> None:
    source = DataSource(num_scenes=14, max_objects=3, mirror=False, cache=str(tmp_path))
    render(source, 16, {"train": 3})
    cached = source.open("train", 16, torch.device("cpu"))
    found = cached.cache.read(range(4))
    assert sorted(found) == [0, 1, 2]


def test_programs_run_at_once_and_say_who_speaks() -> None:
    said: list[str] = []
    program = "import os; print(os.environ['OMP_NUM_THREADS'], 'threads')"
    run_together({name: [sys.executable, "-c", program] for name in ("a", "b")}, said.append)
    assert sorted(line.split(":")[0] for line in said) == ["a", "b"]
    assert all(line.endswith("threads") for line in said)


def test_a_program_that_fails_ends_the_others() -> None:
    commands = {
        "waiting": [sys.executable, "-c", "import time; time.sleep(100)"],
        "failing": [sys.executable, "-c", "raise SystemExit(3)"],
    }
    with pytest.raises(RuntimeError, match="the failing training ended with exit code 3"):
        run_together(commands, lambda _: None)


@pytest.mark.parametrize("names", [["last"], ["first", "second"]], ids=["last", "both-at-once"])
def test_programs_that_fail_with_no_other_running_are_named(names: list[str]) -> None:
    failing = {name: [sys.executable, "-c", "raise SystemExit(4)"] for name in names}
    with pytest.raises(RuntimeError, match=f"the {names[0]} training ended with exit code 4"):
        run_together({"done": [sys.executable, "-c", ""], **failing}, lambda _: None)


def test_a_training_that_ended_early_is_not_measured(tmp_path: Path) -> None:
    write_run(tmp_path / "run", SCENES, step=2)
    with pytest.raises(RuntimeError, match=r"run must have taken 250000 steps; got 2$"):
        measure([tmp_path / "run"])


def test_the_table_has_a_line_for_each_gradient(tmp_path: Path) -> None:
    rows = [row("implicit", fg_ari=0.9, mean_best_overlap=0.7), row("unrolled", fg_ari=0.5)]
    results = DemoResults(describe_environment(torch.device("cpu")), rows)
    text = demo_markdown(results)
    assert "| implicit | 4 | 4 | 0.900 | - | 0.700 | - | 1.000 | 0.50 | 50.0 | 2.00 |" in text
    assert text.count("|  |  | 9 | 0.950 | - | - | - |  |  |  |  |") == 2
    assert "| unrolled | 4 | 4 | 0.500 | - | - | - | 1.000 | 0.50 | 50.0 | 2.00 |" in text
    assert text.endswith(LEGEND)
    results.save(tmp_path / "demo.json")
    assert DemoResults.load(tmp_path / "demo.json") == results
    assert len(json.loads((tmp_path / "demo.json").read_text())["rows"][0]["curve"][0]) == len(
        CURVES
    )
