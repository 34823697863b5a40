from __future__ import annotations

import dataclasses
import importlib
import json
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks.readme import filled
from fastslots.benchmark import (
    Results,
    StepResults,
    choose_step_providers,
    run_step_benchmark,
    step_cases,
)
from fastslots.benchmark.attention.reports.card import accuracy_markdown, kernels_markdown
from fastslots.environment import describe_environment
from tests.benchmark.attention.test_speedups import gpu_rows
from tests.models.slate.small_models import small_config

SCRIPTS = Path(__file__).parents[2] / "scripts"
CARD = "NVIDIA H100 80GB HBM3"
SKIPPED = {"provider": "torch + graph", "reason": "no graph"}
KERNEL = {"kernel": "_attend_kernel", "launches": 8.0, "us_p50": 20.0, "us_per_step": 160.0}
COUNTERS = {
    "gpu__time_duration.sum [us]": 21.5,
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed [%]": 61.2,
    "smsp__inst_executed.sum [inst]": 12345.0,
}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu.reports.files")


@pytest.fixture(scope="module")
def step_rows():
    config = small_config()
    cases = step_cases(2, (config.image_size,), (config.vocab_size,), "bf16", config)
    providers = choose_step_providers(compiled=False)
    return run_step_benchmark(cases, providers, torch.device("cpu"), repeats=3).rows


def line(stage, unit, *, run="1", commit="abc", device=CARD, dry_run=False, **fields):
    environment = describe_environment(torch.device("cpu"))
    where = environment | {"device": device, "commit": commit, "dirty": False}
    content = {"stage": stage, "unit": unit, "run": run, **fields}
    return content | {"dry_run": dry_run, "environment": where}


def save(folder, *lines):
    folder.mkdir(exist_ok=True)
    for row in lines:
        with (folder / f"{row['stage']}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def results_of(ms, stage, case="slate64", **where):
    rows = gpu_rows(case, (7,)).rows
    return [
        line(
            stage,
            case,
            result=dataclasses.asdict(dataclasses.replace(row, both_ms_p50=ms)),
            **where,
        )
        for row in rows
    ]


def error(unit, tensor, ratio, **where):
    numbers = {"error": 1.0, "eager_error": 1.0, "bound": 1.0, "ok": ratio <= 1}
    return line("smoke", unit, tensor=tensor, ratio=ratio, **numbers, **where)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (CARD, "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("A card", "a-card"),
    ],
)
def test_a_folder_is_named_after_its_card(report, device, name):
    assert report.card_name(device) == name


@pytest.mark.slow
def test_times_beside_compiled_forms_come_before_others(report, tmp_path):
    save(tmp_path / "back", *results_of(2.0, "times"), *results_of(1.0, "baselines")[:3])
    save(tmp_path / "back", line("times", "slate64", skipped=SKIPPED))
    (path,) = report.write([tmp_path / "back"], tmp_path / "results")
    assert path == tmp_path / "results" / "h100" / "slot-attention.json"
    found = Results.load(path)
    assert sorted(row.both_ms_p50 for row in found.rows)[:4] == [1.0, 1.0, 1.0, 2.0]
    assert len(found.rows) == len(gpu_rows("slate64", (7,)).rows)
    assert [entry.reason for entry in found.skipped] == ["no graph"]
    assert (found.environment["device"], found.environment["commit"]) == (CARD, "abc")


@pytest.mark.slow
def test_the_last_run_at_the_last_commit_counts_of_every_stage(report, tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    save(folders[0], error("slate64 bf16", "slots", 0.5), error("clevr bf16", "attn", 3.0))
    save(folders[0], *results_of(9.0, "times"))
    save(folders[1], error("clevr bf16", "attn", 0.7, run="2"))
    save(folders[1], *results_of(1.0, "times", run="2", commit="def"))
    report.write(folders, tmp_path / "results")
    folder = tmp_path / "results" / "h100"
    checks = json.loads((folder / "smoke.json").read_text())
    assert [row["ratio"] for row in checks["rows"]] == [0.5, 0.7]
    assert checks["environment"]["commit"] == "abc"
    assert {row.both_ms_p50 for row in Results.load(folder / "slot-attention.json").rows} == {1.0}


@pytest.mark.slow
def test_what_is_measured_again_in_a_later_run_replaces_it(report, tmp_path):
    save(tmp_path, *results_of(9.0, "times"), *results_of(9.0, "times", case="clevr"))
    save(tmp_path, *results_of(1.0, "times_again", run="2"))
    save(tmp_path, error("slate64 bf16", "slots", 0.5))
    save(tmp_path, error("slate64 bf16", "slots", 0.25, run="2") | {"stage": "smoke_again"})
    report.write([tmp_path], tmp_path / "results")
    folder = tmp_path / "results" / "h100"
    rows = Results.load(folder / "slot-attention.json").rows
    assert {(row.case, row.both_ms_p50) for row in rows} == {("slate64", 1.0), ("clevr", 9.0)}
    checks = json.loads((folder / "smoke.json").read_text())
    assert [row["ratio"] for row in checks["rows"]] == [0.25]


def test_dry_runs_and_sources_without_a_commit_are_left_out(report, tmp_path, capsys):
    save(tmp_path / "back", error("a", "slots", 0.5, dry_run=True))
    save(tmp_path / "back", error("a", "slots", 0.5, commit=None))
    assert report.main([str(tmp_path / "back"), "--results", str(tmp_path / "results")]) == 1
    assert "no rows of a GPU at a known commit" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_an_archive_is_read_as_a_folder_is(report, tmp_path):
    back = tmp_path / "back"
    save(back, error("a", "slots", 0.5), line("train", "all", outcome="passed"))
    (back / "train").mkdir()
    (back / "train" / "comparison.png").write_text("picture")
    (back / "train" / "weights").write_text("weights")
    with tarfile.open(tmp_path / "results.tgz", "w:gz") as archive:
        for path in back.iterdir():
            archive.add(path, arcname=path.name)
    folder = report._unpacked(tmp_path / "results.tgz", tmp_path / "unpacked")
    (path,) = report.write([folder], tmp_path / "results")
    assert path.name == "smoke.json"
    assert [p.name for p in (path.parent / "comparison").iterdir()] == ["comparison.png"]


@pytest.mark.slow
def test_readmes_show_every_card(report, tmp_path, step_rows):
    back, results = tmp_path / "back", tmp_path / "results"
    readme = "<!-- gpu:measured -->\n<!-- /gpu -->\n<!-- gpu:kernels -->\n<!-- /gpu -->\n"
    assert filled(readme, results, draw=False).count("Nothing was measured on a GPU yet.") == 2
    save(back, *results_of(1.0, "times"), *results_of(1.0, "times", device="NVIDIA H200"))
    save(back, error("slate64 bf16", "slots", 0.5), error("clevr bf16", "d inputs", 0.625))
    save(back, line("unit_tests", "a::b", test="passed", seconds=1.0))
    save(back, line("unit_tests", "a::c", test="skipped", seconds=1.0))
    save(
        back, line("kernels", "slate64 implicit", **KERNEL, resources={"registers per thread": 128})
    )
    save(back, line("counters", "slate64", kernel="_attend_kernel", counters=COUNTERS))
    save(back, *(line("slate", "64", result=dataclasses.asdict(row)) for row in step_rows))
    report.write([back], results)
    text = filled(readme, results, draw=True)
    assert text.count(f"**{CARD}**") == text.count("**NVIDIA H200**") == 2
    assert "| slate64 | implicit | 7 | 1.00 |" in text
    assert "the largest error is 0.625 of what rounding explains (d inputs, clevr bf16)" in text
    assert "Tests that need a GPU: 1 passed, 0 failed, 1 skipped." in text
    assert "| slate64 | `_attend_kernel` | 8 | 20.0 | 160 | 100% | 128 |" in text
    assert "| slate64 | `_attend_kernel` | 21.5 | 61.2 | - |" in text
    assert "inst_executed" not in (results / "h100" / "counters.json").read_text()
    assert "(benchmarks/results/h100/slate-steps.png)" in text
    assert len(StepResults.load(results / "h100" / "slate-steps.json").rows) == len(step_rows)
    assert (results / "h100" / "speed-ups.png").exists()
    assert filled(text, results, draw=False) == text


def test_a_card_without_details_has_no_words_for_them(tmp_path):
    assert (accuracy_markdown(tmp_path), kernels_markdown(tmp_path)) == ("", "")
