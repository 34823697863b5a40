import importlib.util
import itertools
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "scripts" / "gpu_suite"
CALM = (sys.executable, "-c", "print('calm')")
BROKEN = (sys.executable, "-c", "print('broken'); raise SystemExit(3)")
ENDLESS = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture(scope="module")
def suite():
    loader = SourceFileLoader("gpu_suite", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_suite", loader))
    sys.modules["gpu_suite"] = module
    loader.exec_module(module)
    return module


@pytest.fixture
def with_parts(suite, monkeypatch):
    """Runs the program on these parts instead of its own."""

    def run(output, parts, *arguments, commit="abc"):
        listed = [suite.Part(name, commands) for name, commands in parts.items()]
        monkeypatch.setattr(suite, "all_parts", lambda *_: iter(listed))
        return suite.main(["--output", str(output), "--commit", commit, *arguments])

    return run


def record(output, name):
    return json.loads((output / f"{name}.json").read_text())


def test_a_part_that_fails_is_recorded_and_the_others_run(with_parts, tmp_path, capsys):
    parts = {"first": (CALM,), "second": (CALM, BROKEN, CALM), "third": (CALM,)}
    assert with_parts(tmp_path, parts) == 1
    assert [record(tmp_path, name)["status"] for name in parts] == ["passed", "failed", "passed"]
    assert record(tmp_path, "second")["reason"] == "exit code 3\ncalm\nbroken\n"
    assert (tmp_path / "logs" / "third.txt").read_text() == "calm\n"
    assert "failed: second" in capsys.readouterr().out


def test_what_passed_at_this_commit_is_not_run_again(with_parts, tmp_path, capsys):
    with_parts(tmp_path, {"a": (CALM,), "b": (BROKEN,)})
    capsys.readouterr()
    assert with_parts(tmp_path, {"a": (BROKEN,), "b": (CALM,)}) == 0
    out = capsys.readouterr().out
    assert "a: passed before" in out
    assert "b: passed" in out
    assert with_parts(tmp_path, {"a": (BROKEN,)}, commit="def") == 1


def test_what_a_dry_run_passed_is_run_in_earnest(with_parts, tmp_path):
    assert with_parts(tmp_path, {"a": (CALM,)}, "--dry-run") == 0
    assert with_parts(tmp_path, {"a": (BROKEN,)}) == 1


def test_what_passed_on_another_device_is_run_again(with_parts, tmp_path):
    with_parts(tmp_path, {"a": (CALM,)})
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record(tmp_path, "a") | {"device": "another"}))
    assert with_parts(tmp_path, {"a": (BROKEN,)}) == 1


def test_what_failed_before_comes_after_what_was_never_tried(with_parts, tmp_path, capsys):
    with_parts(tmp_path, {"a": (BROKEN,)})
    capsys.readouterr()
    with_parts(tmp_path, {"a": (CALM,), "b": (CALM,)})
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["b", "a"]


def test_a_program_that_is_not_there_is_skipped_with_its_reason(with_parts, tmp_path):
    assert with_parts(tmp_path, {"a": (("no-such-sanitizer", "x"),)}) == 0
    found = record(tmp_path, "a")
    assert (found["status"], found["reason"]) == ("skipped", "no-such-sanitizer is not there")


def test_nothing_starts_when_the_time_is_up(with_parts, tmp_path, capsys):
    assert with_parts(tmp_path, {"a": (CALM,)}, "--minutes", "0.1") == 0
    assert "left for the next run: a" in capsys.readouterr().out
    assert not (tmp_path / "a.json").exists()


def test_a_benchmark_is_not_started_with_little_time_left(suite, tmp_path):
    parts = {part.name: part for part in suite.all_parts(tmp_path, "abc", False)}
    assert parts["benchmark-clevr-bf16"].least_s == parts["benchmark-flatness"].least_s == 150
    assert parts["gradcheck-slate-float32"].least_s == 20
    assert (parts["sanitizer-memcheck"].most_s, parts["tests-benchmark"].most_s) == (120, 420)


@pytest.mark.parametrize(("most", "status"), [(420.0, "stopped"), (0.5, "failed")])
def test_a_part_that_takes_too_long_is_ended(suite, tmp_path, most, status):
    """By the end of all time it may go on in the next run; by its own limit it failed."""
    (tmp_path / "logs").mkdir()
    found = suite.run(suite.Part("a", (ENDLESS,), most_s=most), tmp_path, "abc", "gpu", 1.0)
    assert found.status == status
    assert found.reason.startswith("ran past 1 s")
    assert found.seconds < 30


def test_parts_come_in_their_order_and_name_their_commands(suite, tmp_path):
    parts = list(suite.all_parts(tmp_path, "abc", dry_run=False))
    names = [part.name for part in parts]
    kinds = [kind for kind, _ in itertools.groupby(name.partition("-")[0] for name in names)]
    assert kinds == ["tests", "benchmark", "gradcheck", "benchmark", "sanitizer"]
    assert names.index("benchmark-clevr-tf32") < names.index("benchmark-flatness")
    assert names.index("gradcheck-slate-float32") < names.index("benchmark-slate64-bf16")
    assert len(set(names)) == len(names)
    (measure,) = next(part for part in parts if part.name == "benchmark-clevr-bf16").commands
    assert measure[-3:] == ("--commit", "abc", "clevr-bf16")
    assert "--again" in measure


def test_rejects_a_name_that_no_part_has(with_parts, tmp_path):
    with pytest.raises(SystemExit):
        with_parts(tmp_path, {"a": (CALM,)}, "--only", "b")


def test_a_dry_run_measures_a_part(suite, tmp_path):
    arguments = ["--dry-run", "--only", "benchmark-flat-clevr", "--only", "tests-kernels-r"]
    assert suite.main([*arguments, "--commit", "abc", "--output", str(tmp_path)]) == 0
    output = tmp_path / "dry-run"
    assert record(output, "tests-kernels-rest")["status"] == "passed"
    assert record(output, "benchmark-flat-clevr-bf16")["status"] == "passed"
    content = json.loads((output / "results" / "flat-clevr-bf16.json").read_text())
    assert content["environment"]["commit"] == "abc"
    assert content["rows"]
