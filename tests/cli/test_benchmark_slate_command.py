import json

import pytest
from typer.testing import CliRunner

from fastslots.benchmark.step import runner
from fastslots.cli import benchmark_slate as command
from fastslots.cli.benchmark import app

TINY = ["slate", "--device", "cpu", "--image-size", "8", "--vocab-size", "16", "--batch-size", "1"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_writes_tables_a_json_file_and_a_plot(tmp_path):
    result = run(
        *TINY, "--image-size", "12", "--repeats", "3", "--time-limit", "0", "--output", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.count("| fastslots | implicit |") == 4
    assert f"wrote {tmp_path / 'slate-steps.json'}" in result.stdout
    content = json.loads((tmp_path / "slate-steps.json").read_text())
    assert {"schema", "environment", "rows", "skipped"} == content.keys()
    assert [(row["image_size"], row["provider"], row["gradient"]) for row in content["rows"]] == [
        (size, *provider)
        for size in (8, 12)
        for provider in (
            ("public", "unrolled"),
            ("fastslots", "unrolled"),
            ("fastslots", "implicit"),
        )
    ]
    assert {(row["vocab_size"], row["batch_size"]) for row in content["rows"]} == {(16, 1)}
    assert (tmp_path / "slate-steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_measures_what_is_asked_for_alone(tmp_path):
    result = run(
        *(*TINY, "--repeats", "3", "--time-limit", "0", "--output", tmp_path),
        *("--provider", "fastslots", "--gradient", "implicit", "--precision", "bf16"),
        *("--compile", "--compile-limit", "0"),
    )
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "slate-steps.json").read_text())
    (row,) = content["rows"]
    assert (row["provider"], row["gradient"], row["precision"]) == ("fastslots", "implicit", "bf16")
    assert [entry["provider"] for entry in content["skipped"]] == ["fastslots + compile"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-size", "30"], "image_size must be a multiple of the patch size 4; got 30"),
        (["--vocab-size", "0"], "vocab_size must be at least 1; got 0"),
        (["--batch-size", "0"], "batch_size must be at least 1; got 0"),
        (["--provider", "jax"], "provider must be one or more of .*'jax'"),
        (["--gradient", "neumann"], "gradient must be one or more of .*'neumann'"),
        (["--precision", "fp8"], "precision must be one of .*; got 'fp8'"),
        (["--device", "tpu"], "device must be .*; got 'tpu'"),
        (["--repeats", "1"], "repeats must be at least 3; got 1"),
        (["--time-limit", "-1"], "time_limit_s must be at least 0; got -1"),
        (["--compile-limit", "-1"], "compile_limit_s must be at least 0; got -1"),
    ],
)
def test_rejects(tmp_path, arguments, message):
    result = run("slate", *arguments, "--output", tmp_path)
    assert isinstance(result.exception, ValueError)
    with pytest.raises(ValueError, match=message):
        raise result.exception


@pytest.mark.slow
def test_what_was_measured_is_on_the_disk_before_the_next_size(tmp_path, monkeypatch):
    def fail(case, *_):
        if case.config.image_size == 12:
            raise KeyboardInterrupt
        return prepare(case, *_)

    prepare = runner._prepare_all
    monkeypatch.setattr(runner, "_prepare_all", fail)
    result = run(
        *TINY, "--image-size", "12", "--repeats", "3", "--time-limit", "0", "--output", tmp_path
    )
    assert result.exit_code != 0
    content = json.loads((tmp_path / "slate-steps.json").read_text())
    assert [row["image_size"] for row in content["rows"]] == [8, 8, 8]


def test_flags_before_the_name_are_an_error_not_ignored(tmp_path):
    result = run("--repeats", "5", "slate", "--output", tmp_path)
    assert isinstance(result.exception, ValueError)
    assert "--repeats must come after 'slate'" in str(result.exception)


def test_a_folder_that_cannot_be_written_is_an_error_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_step_benchmark", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    result = run(*TINY, "--output", tmp_path / "file" / "runs")
    assert isinstance(result.exception, OSError)
    assert "file" in str(result.exception)


def test_shows_what_its_flags_mean():
    result = run("slate", "--help")
    assert result.exit_code == 0
    for flag in ("image-size", "precision", "compile-limit", "output"):
        assert flag in result.stdout
