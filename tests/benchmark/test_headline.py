from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import filled
from fastslots.benchmark.headline import headline

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CPU_FILES = ("small", "cpu-targets", "slate-step-cpu")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What was measured on a CPU, and a card of which slot attention alone was measured."""
    for name in CPU_FILES:
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    (tmp_path / "x100").mkdir()
    shutil.copy(RESULTS / "h100" / "slot-attention.json", tmp_path / "x100")
    return tmp_path


def change(path: Path, column: str, value: float | None, **wanted: Any) -> None:
    content = json.loads(path.read_text())
    rows = [row for row in content["rows"] if wanted.items() <= row.items()]
    assert rows
    for row in rows:
        row[column] = value
    path.write_text(json.dumps(content))


def table(number: int, results: Path) -> str:
    """Of calls, or of steps: 0 or 1."""
    return headline(results).split("\n\n")[number]


def line(number: int, results: Path, *parts: str) -> list[str]:
    """Cells of the one row of a table that has these parts."""
    lines = table(number, results).splitlines()
    (found,) = [line for line in lines if all(part in line for part in parts)]
    return found.strip("| ").split(" | ")


def test_ratios_are_those_of_the_rows(results: Path) -> None:
    file = results / "x100" / "slot-attention.json"
    case = {"case": "clevr", "iterations": 3}
    ours = {**case, "gradient": "implicit"}
    change(file, "both_ms_p50", 2.0, **ours, provider="triton + graph")
    change(file, "both_ms_p50", 5.0, **ours, provider="reference + compile + graph")
    change(file, "both_ms_p50", 7.0, **case, gradient="unrolled", provider="reference")
    change(file, "speedup", 1.5, **ours, provider="triton")
    change(file, "peak_bytes", 4, **ours, provider="triton")
    change(file, "peak_bytes", 5, **case, gradient="unrolled", provider="reference")
    cells = line(0, results, "clevr", "X100, bf16")
    assert cells[2:] == ["3", "1.50x", "2.50x", "3.50x", "1.25x", "1.00x"]


def test_growth_is_of_many_iterations_over_one(results: Path) -> None:
    case = {"case": "small", "provider": "torch", "gradient": "implicit"}
    for count, value in ((1, 4), (63, 5)):
        change(results / "small.json", "backward_ms_p50", float(value), **case, iterations=count)
    assert line(0, results, "small")[-1] == "1.25x"
    flat = {"case": "flat-slate64", "provider": "triton + graph", "gradient": "implicit"}
    file = results / "x100" / "slot-attention.json"
    for count, value in ((1, 4), (127, 6)):
        change(file, "backward_ms_p50", float(value), **flat, iterations=count)
    assert line(0, results, "slate64")[-1] == "1.50x"


def test_a_step_that_is_slower_is_shown(results: Path) -> None:
    change(
        results / "slate-step-cpu.json", "speedup", 0.5, provider="fastslots", gradient="implicit"
    )
    change(
        results / "slate-step-cpu.json",
        "peak_ratio",
        0.25,
        provider="fastslots",
        gradient="implicit",
    )
    assert line(1, results, "2 CPU threads")[2:] == ["0.50x", "-", "4.00x"]


def test_compiled_steps_are_compared_with_compiled_ones(results: Path) -> None:
    shutil.copy(RESULTS / "h100" / "slate-steps.json", results / "x100")
    assert line(1, results, "X100", "64 pixels")[3] == "-"
    compiled = results / "x100" / "slate-steps-compiled.json"
    shutil.copy(RESULTS / "h100" / "slate-steps-compiled.json", compiled)
    for implementation, time in (("public", 6.0), ("fastslots", 4.0)):
        change(compiled, "step_ms_p50", time, implementation=implementation, compiled=True)
    assert line(1, results, "X100", "64 pixels")[3] == "1.50x"


def test_what_was_not_measured_is_a_dash(results: Path) -> None:
    content = json.loads((results / "x100" / "slot-attention.json").read_text())
    kept = ("triton", "triton + graph")
    content["rows"] = [row for row in content["rows"] if row["provider"] in kept]
    (results / "x100" / "slot-attention.json").write_text(json.dumps(content))
    assert line(0, results, "slate64", "X100")[4:7] == ["-", "-", "-"]
    assert "X100" not in table(1, results)


def test_without_a_card_a_cpu_is_shown_alone(results: Path) -> None:
    shutil.rmtree(results / "x100")
    for number in range(2):
        machines = set(re.findall(r"\| ([^|]*), (?:float32|bf16) \|", table(number, results)))
        assert machines == {"2 CPU threads"}


def test_a_readme_gets_them(results: Path) -> None:
    readme = "<!-- headline:ratios -->\nold\n<!-- /headline -->\n"
    text = filled(readme, results, draw=False)
    assert headline(results) in text
    assert "old" not in text
