"""What came back from a GPU, as files of benchmarks/results and tables of the READMEs."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastslots.benchmark import Results, Skipped, StepResults
from fastslots.benchmark.attention.results import Row as Measured
from fastslots.benchmark.step.results import StepRow
from fastslots.environment import Environment
from gpu.job import Row, read_rows
from gpu.runner import SCRIPTS, with_sources

ROOT = SCRIPTS.parent
# Of times measured twice the first is taken: compiled forms stand beside a fused one of the same process.
TIMES = ("baselines", "times", "flat")
# Of other stages, by file: the stage, and what is kept of its rows that have the first of these.
DETAILS = {
    "smoke": ("smoke", "tensor unit error eager_error bound ratio ok"),
    "kernels": ("kernels", "kernel unit launches us_p50 us_per_step resources"),
    "tune": ("tune", "kernel unit what options us_p50 error"),
    "tune-updates": ("tune", "update unit us_p50 by_kernel"),
    "counters": ("counters", "counters unit kernel"),
    "attention": (
        "attention",
        "attention unit length batch forward_us step_us kept_bytes peak_bytes",
    ),
    "tune-attention": ("attention", "kernel unit what options us_p50 error"),
    "unit-tests": ("unit_tests", "test unit seconds"),
    "memcheck": ("memcheck", "summary unit exit_code"),
}
COUNTERS = (
    "gpu__time_duration.sum",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__warps_eligible.avg.per_cycle_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__waves_per_multiprocessor",
)


def main(command: Sequence[str] | None = None) -> int:
    """Writes the files of every card, then the READMEs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_run report", description=__doc__)
    parser.add_argument("path", type=Path, nargs="+", help="results.tgz, or a folder of its files")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="one folder per card"
    )
    flags = parser.parse_args(command)
    with tempfile.TemporaryDirectory() as folder:
        folders = [_unpacked(path, Path(folder) / str(i)) for i, path in enumerate(flags.path)]
        written = write(folders, flags.results)
    if not written:
        print("gpu_run report: no rows of a GPU at a known commit", file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path}" for path in written))
    environment = os.environ | with_sources()
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py")]
    return subprocess.run(command, env=environment, check=False).returncode


def write(folders: Iterable[Path], results: Path) -> list[Path]:
    """Writes what was measured on each card, of every kind what the last commit gave.

    Args:
        folders: Of `gpu_run`'s files, in the order of the runs.
        results: Folder for a folder of each card.
    """
    rows: dict[str, list[Row]] = {}
    for folder in folders:
        for row in (row for path in folder.glob("*.jsonl") for row in read_rows(path)):
            if not row["dry_run"] and row["environment"]["commit"] is not None:
                rows.setdefault(row["environment"]["device"], []).append(row)
        _copy_comparison(folder, results)
    return [
        path
        for device, of_card in rows.items()
        for path in _write_card(results / card_name(device), of_card)
    ]


def card_name(device: str) -> str:
    """Name of a card's folder: "h100" for "NVIDIA H100 80GB HBM3"."""
    model = re.search(r"\b[A-Z]{1,3}\d{2,4}\w*\b", device)
    return model[0].lower() if model else re.sub(r"\W+", "-", device.lower())


def _write_card(folder: Path, rows: Sequence[Row]) -> list[Path]:
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    timed = _last(rows, *TIMES)
    if any("result" in row for row in timed):
        found: dict[tuple[Any, ...], Measured] = {}
        for row in (Measured(**row["result"]) for row in timed if "result" in row):
            found.setdefault((row.case, row.provider, row.gradient, row.iterations), row)
        results = Results(_environment(timed), list(found.values()), _skipped(timed))
        results.save(folder / "slot-attention.json")
        written.append(folder / "slot-attention.json")
    for stage, path in (
        ("slate", folder / "slate-steps.json"),
        ("slate_compiled", folder / "slate-steps-compiled.json"),
    ):
        steps = _last(rows, stage)
        measured = [StepRow(**row["result"]) for row in steps if "result" in row]
        if measured:
            StepResults(_environment(steps), measured, _skipped(steps)).save(path)
            written.append(path)
    for name, (stage, names) in DETAILS.items():
        fields = names.split()
        kept = [row for row in _last(rows, stage) if fields[0] in row]
        if kept:
            lines = [
                json.dumps({field: _chosen(row.get(field)) for field in fields}) for row in kept
            ]
            head = json.dumps(_environment(kept))
            text = f'{{"environment": {head},\n"rows": [\n' + ",\n".join(lines) + "\n]}\n"
            path = folder / f"{name}.json"
            path.write_text(text)
            written.append(path)
    return written


def _chosen(value: Any) -> Any:
    """Of hundreds of counters, those that tell what limits a kernel; anything else as it is."""
    if not isinstance(value, dict):
        return value
    few = {key: value[key] for key in value if key.partition(" ")[0] in COUNTERS}
    return few or value


def _environment(rows: Sequence[Row]) -> Environment:
    environment: Environment = rows[-1]["environment"]
    return environment


def _skipped(rows: Sequence[Row]) -> list[Skipped]:
    found = [Skipped(**row["skipped"]) for row in rows if "skipped" in row]
    return list(dict.fromkeys(found))


def _last(rows: Sequence[Row], *stages: str) -> list[Row]:
    """Rows of stages, in their order, at the last commit, of the last run that tried their unit.

    What a later stage does again (`times_again`) counts as the same stage.
    """
    found = [
        row
        for stage in stages
        for row in rows
        if row["stage"].removesuffix("_again") == stage and "unit" in row
    ]
    if not found:
        return []
    commit = max(found, key=lambda row: row["run"])["environment"]["commit"]
    found = [row for row in found if row["environment"]["commit"] == commit]
    last: dict[tuple[str, str], str] = {}
    for row in found:
        last[_key(row)] = max(last.get(_key(row), ""), row["run"])
    return [row for row in found if row["run"] == last[_key(row)]]


def _key(row: Row) -> tuple[str, str]:
    return row["stage"].removesuffix("_again"), row["unit"]


def _unpacked(path: Path, folder: Path) -> Path:
    if path.is_dir():
        return path
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _copy_comparison(folder: Path, results: Path) -> None:
    """Curves, pictures and numbers of implicit against unrolled SLATE; weights are another matter."""
    trained = [row for row in read_rows(folder / "train.jsonl") if not row["dry_run"]]
    if not trained:
        return
    target = results / card_name(trained[-1]["environment"]["device"]) / "comparison"
    for path in (*(folder / "train").glob("*.json"), *(folder / "train").glob("*.png")):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
