from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
HERE = {"device": "card", "commit": "abc"}

# A stage whose units end in all ways there are.
TROUBLED = """
import os, sys, time
from pathlib import Path
import torch
from gpu.job import Job, Skip

def do(unit):
    if unit == "raises":
        raise ValueError("no such shape")
    if unit == "hangs":
        time.sleep(600)
    if unit == "crashes":
        os.abort()
    if unit == "skips":
        raise Skip("no ncu")
    return unit != "wrong"

output, run, end = sys.argv[1:]
environment = {"device": "card", "commit": "abc"}
job = Job("smoke", Path(output), run, float(end), environment, torch.device("cpu"), False)
job.each(["good", "raises", "hangs", "crashes", "skips", "wrong", "last"], do, most_s=2.0)
"""
ENDLESS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
TESTS = """
import os
import pytest

pytestmark = pytest.mark.gpu

def test_right():
    assert True

def test_wrong():
    assert 1 == 2, "one is not two"

@pytest.mark.skip(reason="not here")
def test_absent():
    pass

def test_poisons():
    os.environ["POISONED"] = "1"
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_comes_after():
    assert "POISONED" not in os.environ
"""
COUNTERS = """==PROF== Connected to process 7
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","ns","register/thread"
"0","_attend_kernel","1,112,500","128"
"1","_attend_backward_kernel","40,100","168"
"""


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def module(name):
    return importlib.import_module(f"gpu.{name}")


def make_job(output, run="1", seconds=60.0, **environment):
    return module("job").Job(
        "smoke",
        output,
        run,
        time.time() + seconds,
        {**HERE, **environment},
        torch.device("cpu"),
        True,
    )


def make_run(output, seconds=60.0, name="1"):
    output.mkdir(exist_ok=True)
    return module("runner").Run(name, output, output, time.time() + seconds, HERE, False)


def rows(output, stage="smoke"):
    return module("job").read_rows(output / f"{stage}.jsonl")


def is_running(process):
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def outcomes(output):
    return {row["unit"]: row["outcome"] for row in rows(output) if "outcome" in row}


@pytest.fixture
def stage_program(monkeypatch):
    """Runs a program in place of a stage."""

    def use(program):
        def command(stage, run, end):
            arguments = [str(run.output), run.name, str(end)] if program is TROUBLED else []
            return [sys.executable, "-c", program, *arguments]

        monkeypatch.setattr(module("runner"), "_command", command)

    return use


@pytest.mark.slow
def test_units_that_fail_hang_or_crash_do_not_stop_the_others(tmp_path, stage_program):
    stage_program(TROUBLED)
    runner, run = module("runner"), make_run(tmp_path)
    record = runner.run_stage(module("stages").Stage("smoke", 50.0, ""), run)
    assert outcomes(tmp_path) == {
        "good": "passed",
        "raises": "failed",
        "hangs": "started",
        "crashes": "started",
        "skips": "skipped",
        "wrong": "failed",
        "last": "passed",
    }
    assert record["status"] == "failed"
    assert record["reason"].startswith("failed: raises, wrong, hangs, crashes")
    reasons = {row["unit"]: row.get("reason") for row in rows(tmp_path)}
    assert reasons["raises"] == "ValueError: no such shape"
    assert reasons["skips"] == "no ncu"
    log = (tmp_path / "smoke.log").read_text()
    assert "Timeout" in log  # where the one that hangs stood


@pytest.mark.slow
def test_a_stage_ends_in_its_time_with_all_that_it_started(tmp_path, stage_program):
    stage_program(ENDLESS)
    record = module("runner").run_stage(
        module("stages").Stage("smoke", 5.0, ""), make_run(tmp_path)
    )
    assert record["status"] == "stopped"  # and not after the 600 s that its parts sleep
    child = int((tmp_path / "smoke.log").read_text())
    while is_running(child):  # it was killed, and ends as soon as the machine comes to it
        time.sleep(0.1)


def test_what_passed_is_not_done_again_on_this_device_at_this_commit(tmp_path):
    done = []
    make_job(tmp_path).each(["a", "b"], lambda unit: done.append(unit) or unit == "a")
    make_job(tmp_path, run="2").each(["a", "b"], lambda unit: done.append(unit))
    assert done == ["a", "b", "b"]
    make_job(tmp_path, run="3").each(["a", "b"], lambda unit: done.append(unit))
    assert done == ["a", "b", "b"]
    make_job(tmp_path, run="4", device="another").each(["a"], lambda unit: done.append(unit))
    make_job(tmp_path, run="5", commit="def").each(["a"], lambda unit: done.append(unit))
    assert done == ["a", "b", "b", "a", "a"]


def test_without_a_commit_all_is_done_again_but_once_in_a_run(tmp_path):
    done = []
    for run in ("1", "1", "2"):
        make_job(tmp_path, run=run, commit=None).each(["a"], lambda unit: done.append(unit))
    assert done == ["a", "a"]


def test_no_unit_starts_without_time(tmp_path):
    make_job(tmp_path, seconds=1.0).each(["a"], lambda _: pytest.fail("started"))
    assert outcomes(tmp_path) == {"a": "left"}


def test_every_row_says_where_it_was_measured_and_a_torn_one_is_ignored(tmp_path):
    make_job(tmp_path).row("a", ms=1.5)
    path = tmp_path / "smoke.jsonl"
    path.write_text(path.read_text() + '{"unit": "b", "ms"')
    (row,) = rows(tmp_path)
    where = {"run": "1", "dry_run": True, "environment": HERE}
    assert row == {"stage": "smoke", "unit": "a", "ms": 1.5, **where}


@pytest.mark.parametrize(
    ("outcomes", "code", "status"),
    [
        ({"a": "passed", "b": "passed"}, 0, "passed"),
        ({"a": "passed", "b": "skipped"}, 0, "passed"),
        ({"a": "skipped"}, 0, "skipped"),
        ({}, 0, "skipped"),
        ({"a": "passed", "b": "failed"}, 0, "failed"),
        ({"a": "passed", "b": "started"}, 1, "failed"),
        ({"a": "passed", "b": "started"}, None, "stopped"),
        ({"a": "passed", "b": "left"}, 0, "stopped"),
        ({"a": "failed"}, None, "failed"),
        ({}, 1, "failed"),
    ],
)
def test_judges_a_stage_by_its_units(outcomes, code, status):
    assert module("runner").judge(outcomes, code)[0] == status


def test_stages_that_passed_are_not_run_again_and_skipped_ones_are(tmp_path, monkeypatch):
    runner, stages = module("runner"), module("stages")
    started = []

    def run_stage(stage, run):
        started.append(stage.name)
        status = {"smoke": "passed", "times": "skipped", "kernels": "failed"}[stage.name]
        return {"stage": stage.name, "run": run.name, "status": status, "reason": ""}

    monkeypatch.setattr(runner, "run_stage", run_stage)
    chosen = [stages.STAGES[name] for name in ("smoke", "times", "kernels")]
    for name in "12":
        records = runner.run_stages(chosen, make_run(tmp_path, name=name))
    assert started == ["smoke", "times", "kernels", "times", "kernels"]
    assert [record["status"] for record in records] == ["passed", "skipped", "failed"]
    late = runner.run_stages(chosen[1:], make_run(tmp_path, seconds=5.0))
    assert {record["status"] for record in late} == {"left"}
    assert len(started) == 5


def test_files_are_packed_as_one_but_large_ones(tmp_path, monkeypatch):
    runner, output = module("runner"), tmp_path / "output"
    monkeypatch.setattr(runner, "MOST_BYTES_PACKED", 10)
    (output / "train").mkdir(parents=True)
    for name, content in {"a.jsonl": "{}", "train/b.png": "x", "train/weights": "y" * 11}.items():
        (output / name).write_text(content)
    for archives in (output / "back", tmp_path / "archives", output / "back"):
        runner.pack(output, archives)
        assert sorted(path.name for path in archives.iterdir()) == ["results.tgz", "train-weights"]
        assert (archives / "train-weights").read_text() == "y" * 11
    with tarfile.open(output / "back" / "results.tgz") as archive:
        assert archive.getnames() == ["a.jsonl", "train/b.png"]


@pytest.mark.slow
def test_tests_of_a_gpu_are_rows_and_a_poisoned_worker_is_replaced(tmp_path):
    """In a process of its own: pytest runs in this one."""
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    program = (
        "import sys, time, torch; from pathlib import Path;"
        "from gpu import job; from gpu.checks import unit_tests;"
        "j = job.Job('unit_tests', Path('.'), '1', time.time() + 60, {}, torch.device('cpu'), False);"
        "print(unit_tests.run(j, ['test_some.py'], 1))"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "False"
    tests = {}
    for row in rows(tmp_path, "unit_tests"):
        tests.setdefault(row["unit"].partition("::")[2], []).append(row["test"])
        if row["unit"].endswith("test_wrong"):
            assert "one is not two" in row["message"]
    assert tests["test_right"] == tests["test_comes_after"] == ["passed"]
    assert tests["test_wrong"] == ["failed"]
    assert tests["test_absent"] == ["skipped"]
    assert set(tests["test_poisons"]) == {"failed"}


def test_reads_the_counters_of_every_launch(tmp_path):
    path = tmp_path / "counters.csv"
    path.write_text(COUNTERS)
    first, second = module("profiling.counters").parse(path)
    assert first["Kernel Name"] == "_attend_kernel"
    assert first["gpu__time_duration.sum [us]"] == 1112.5
    assert second["launch__registers_per_thread [register/thread]"] == 168
    path.write_text("==ERROR== nothing was profiled\n")
    assert module("profiling.counters").parse(path) == []


@pytest.mark.parametrize(
    "wrong", [["third"], ["first", "--minute", "x"], ["first", "--only", "all"], []]
)
def test_rejects_arguments(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        module("main").parse(wrong)
    assert error.value.code == 2
    assert "usage: gpu_run" in capsys.readouterr().err


def test_says_that_there_is_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert module("main").main(["first", "--output", str(tmp_path)]) == 2
    assert "gpu_run: device 'cuda' is not there" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_dry_run_goes_through_every_stage(tmp_path):
    """What needs a GPU is skipped, never passed; what is done again is done once here."""
    command = [sys.executable, str(SCRIPTS / "gpu_run"), "first", "--dry-run", "--commit", "abc"]
    command += ["--minutes", "30"]
    expected = {
        "first": {"unit_tests": "skipped", "counters": "skipped"},
        "second": {"compile": "skipped", "slate_compiled": "skipped", "memcheck": "skipped"},
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for call, skipped in expected.items():
        names = [stage.name for stage in module("stages").CALLS[call]]
        names = [name for name in names if not name.endswith("_again")]
        command[2] = call
        done = subprocess.run(
            [*command, "--output", str(tmp_path), *(f"--only={name}" for name in names)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        records = {row["stage"]: row for row in rows(tmp_path, "stages")}
        ran = {name: records[name]["status"] for name in names}
        assert {name: ran[name] for name in skipped} == skipped
        assert {"passed", "skipped"} >= set(ran.values())
        assert "passed" in ran.values()
        assert "== stages" in done.stdout
    measured = [row["result"] for row in rows(tmp_path, "times") if "result" in row]
    assert {row["gradient"] for row in measured} == {"no-grad", "implicit", "unrolled"}
    for row in rows(tmp_path, "smoke"):
        assert row["environment"]["commit"] == "abc"
        assert row.get("ratio", 0) <= 1
    with tarfile.open(tmp_path / "back" / "results.tgz") as archive:
        content = archive.extractfile("times.jsonl").read().decode().splitlines()
    assert len(content) == len(rows(tmp_path, "times"))
    assert json.loads(content[0])["stage"] == "times"


def test_racecheck_tells_one_instructions_writes_from_races():
    races = module("checks.memcheck").races
    text = """\
========= Error: Race reported between Write access at _keys_kernel+0x9d0 in update_kernels.py:330
=========     and Write access at _keys_kernel+0x9d0 in update_kernels.py:330 [11 hazards]
=========
========= Error: Race reported between Write access at _a_kernel+0x10 in a.py:3
=========     and {} [2 hazards]
"""
    same = "Write access at _a_kernel+0x10 in a.py:3"
    assert races(text.format(same)) == (2, 0)
    assert races(text.format(same.replace("0x10", "0x20"))) == (1, 1)
    assert races(text.format(same.replace("Write", "Read"))) == (1, 1)
    assert races("Error: Race reported between what is written in no known form") == (0, 1)
    assert races("RACECHECK SUMMARY: 0 hazards displayed") == (0, 0)
