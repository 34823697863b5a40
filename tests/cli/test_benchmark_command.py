import json

import pytest
import torch
from typer.testing import CliRunner

from fastslots.benchmark import IncorrectResultError
from fastslots.benchmark.attention import prepare
from fastslots.cli import benchmark as command
from fastslots.cli.benchmark import app

TINY = ["--device", "cpu", "--batch", "2", "--inputs", "10", "--width", "8", "--slots", "3"]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_writes_a_table_a_json_file_and_a_plot(tmp_path):
    result = run(
        *TINY, "--iterations", "1,3", "--repeats", "3", "--no-compile", "--output", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    assert "| torch | implicit | 3 |" in result.stdout
    content = json.loads((tmp_path / "small.json").read_text())
    assert {"schema", "environment", "rows", "skipped"} == content.keys()
    row = content["rows"][0]
    assert (row["batch"], row["num_inputs"], row["mlp_hidden_size"]) == (2, 10, 8)
    assert {r["iterations"] for r in content["rows"]} == {1, 3}
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


def test_measures_what_is_asked_for_alone(tmp_path):
    result = run(
        *(*TINY, "--iterations", "2", "--repeats", "3", "--no-compile", "--output", str(tmp_path)),
        *("--backend", "torch", "--gradient", "implicit", "--dtype", "float64", "--heads", "2"),
        *("--mlp-width", "4"),
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert (row["provider"], row["gradient"], row["dtype"]) == ("torch", "implicit", "float64")
    assert (row["num_heads"], row["mlp_hidden_size"]) == (2, 4)


def test_measures_forwards_alone_in_a_precision_without_a_plot(tmp_path):
    result = run(
        *(*TINY, "--iterations", "2", "--repeats", "3", "--no-compile", "--output", str(tmp_path)),
        *("--backend", "torch", "--gradient", "no-grad", "--precision", "bf16", "--no-plot"),
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert (row["gradient"], row["precision"], row["backward_ms_p50"]) == ("no-grad", "bf16", None)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_wrong_results_end_the_command_with_an_error_after_all_is_written(tmp_path, monkeypatch):
    def wrong(call):
        raise IncorrectResultError("slots is off by 2")

    monkeypatch.setattr(prepare, "check_call", wrong)
    result = run(*TINY, "--iterations", "1", "--no-compile", "--output", str(tmp_path))
    assert result.exit_code == 1
    assert "slots is off by 2" in result.output
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["skipped"][-1]["wrong"]


def test_flags_before_the_name_of_a_command_are_refused():
    result = run("--no-compile", "slate")
    assert "must come after 'slate'" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp8"], "precision must be one of .*; got 'fp8'"),
        (["--precision", "tf32", "--dtype", "float64"], "precision 'tf32' needs dtype float32"),
        (["--energy", "-1"], "energy_s must be at least 0; got -1"),
        (["--preset", "huge"], "preset must be one of .*; got 'huge'"),
        (["--backend", "jax"], "backend must be one or more of .*'jax'"),
        (["--gradient", "neumann"], "gradient must be one or more of .*'neumann'"),
        (["--dtype", "int8"], "dtype must be one of .*; got 'int8'"),
        (["--device", "tpu"], "device must be .*; got 'tpu'"),
        (["--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["--iterations", "1,x"], "iterations must be positive ints, as 1,3,7; got '1,x'"),
        (["--iterations", "1.5"], "iterations must be positive ints, as 1,3,7; got '1.5'"),
        (["--iterations", "0"], "iterations must be at least 1; got 0"),
        (["--batch", "0"], "batch must be at least 1; got 0"),
        (["--preset", "cpu-targets", "--batch", "2"], "preset 'cpu-targets' has several shapes"),
        (["--repeats", "1"], "repeats must be at least 3; got 1"),
    ],
)
def test_rejects(tmp_path, arguments, message):
    result = run(*arguments, "--output", str(tmp_path))
    assert isinstance(result.exception, ValueError)
    with pytest.raises(ValueError, match=message):
        raise result.exception


def test_rejects_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = run("--device", "cuda")
    assert isinstance(result.exception, ValueError)
    assert "device 'cuda' is not there" in str(result.exception)


def test_a_folder_that_cannot_be_written_is_an_error_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_benchmark", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    result = run(*TINY, "--output", str(tmp_path / "file" / "runs"))
    assert isinstance(result.exception, OSError)
    assert "file" in str(result.exception)


def test_shows_what_its_flags_mean():
    result = run("--help")
    assert result.exit_code == 0
    for flag in ("preset", "iterations", "output"):
        assert flag in result.stdout
