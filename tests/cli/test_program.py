"""The program around the commands: interrupts, terminals that speak ASCII, the version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import pytest

import fastslots as package
from fastslots.__main__ import main
from fastslots.cli.app import app
from fastslots.version import find_version
from tests.cli.conftest import Command
from tests.cli.test_evaluate_command import SCENES, write_run
from tests.training.tiny import TINY_FLAGS

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "",
    "train",
    "evaluate",
    "reconstruct",
    "segment",
    "compare",
    "benchmark",
    "benchmark slate",
]
SMALL = [*TINY_FLAGS, "--batch-size", 4, "--num-scenes", 7, "--cache", "none"]


def program(
    *arguments: str, first_path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    paths = [*([str(first_path)] if first_path else []), str(ROOT), str(ROOT / "kernels")]
    return subprocess.run(
        [sys.executable, "-m", "fastslots", *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        timeout=120,
        check=False,
        # Programs in the background of a shell ignore interrupts, and what they start does.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


IMPORT = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except:  # as PyTorch does in places
    pass
raise RecursionError("what PyTorch then ends in")
"""


@pytest.mark.parametrize("module", ["torch", "typer", "rich"])
def test_an_interrupt_during_imports_is_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(IMPORT)
    ended = program("train", first_path=tmp_path)
    assert (ended.returncode, ended.stderr.decode()) == (130, "fastslots: interrupted\n")


def test_an_interrupt_that_is_ignored_stays_so(
    fastslots: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert fastslots("--version").code == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["train", *SMALL], "fastslots.cli.train.run_training"),
        (["train", *SMALL], "fastslots.data.source.Scenes"),
        (["train", *SMALL], "fastslots.training.loop.TrainingRun"),
        (["evaluate", "run", "--device", "cpu"], "fastslots.cli.evaluate.measure"),
        (["evaluate", "run", "--device", "cpu"], "fastslots.data.source.Scenes"),
        (
            ["reconstruct", "images/00.png", "--model", "run"],
            "fastslots.cli.reconstruct.load_image",
        ),
        (
            ["segment", "images/00.png", "--model", "run"],
            "fastslots.cli.segment.load_image",
        ),
        (["compare", "--tiny", "--device", "cpu"], "fastslots.cli.compare.run_comparison"),
        (["benchmark", "--device", "cpu"], "fastslots.cli.benchmark.run_benchmark"),
        (
            ["benchmark", "slate", "--device", "cpu"],
            "fastslots.cli.benchmark_slate.run_step_benchmark",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_an_interrupt_ends_every_command_in_one_line(
    fastslots: Command,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[object],
    where: str,
) -> None:
    write_run(Path("run"), SCENES)
    monkeypatch.setattr(where, interrupt)
    result = fastslots(*command)
    assert result.code == 130
    assert result.err.splitlines()[-1] == "fastslots: interrupted"
    assert "Traceback" not in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_where_there_is_ascii_alone(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["fastslots", *command.split(), "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    assert "Usage: fastslots" in (tmp_path / "out").read_text(errors="replace")


@pytest.mark.slow
def test_the_program_works_in_the_c_locale(tmp_path: Path) -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    shown = program("train", "--help", **ascii_alone)
    assert shown.returncode == 0, shown.stderr
    assert b"L? norm" in shown.stdout
    refused = program("evaluate", "x", "--data", str(tmp_path / "\u00fc"), **ascii_alone)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"fastslots: error: x holds no checkpoint")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--iterations", "3"], "No such option: --iterations"),
        (["train", "--steps", "many"], "Invalid value for '--steps': "),
        (["train", "--workers", "99999"], "Invalid value for '--workers': "),
        (["train", "--steps"], "Option '--steps' requires an argument; see: fastslots"),
        (["train", "one", "two"], "(one two); see: fastslots train --help"),
        (["reconstruct"], "Missing argument 'IMAGE"),
        (["segment"], "Missing argument 'IMAGE"),
        (["benchmark", "slates"], "No such command 'slates'"),
        (["paint"], "No such command 'paint'"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(fastslots: Command, arguments: list[str], message: str) -> None:
    result = fastslots(*arguments)
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("fastslots: error: ")
    assert message in line
    assert "; see: fastslots" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--output"], "--output"),
        (["train", "--resume"], "--resume"),
        (["train", "--data"], "data"),
        (["evaluate"], "CHECKPOINT_OR_RUN"),
        (["evaluate", "run", "--output"], "--output"),
        (["evaluate", "run", "--data"], "data"),
        (["reconstruct", "--model", "run"], "IMAGE"),
        (["reconstruct", "a.png", "--model"], "--model"),
        (["reconstruct", "a.png", "--model", "run", "--output"], "--output"),
        (["segment", "--model", "run"], "IMAGE"),
        (["segment", "a.png", "--model"], "--model"),
        (["segment", "a.png", "--model", "run", "--output"], "--output"),
        (["compare", "--output"], "--output"),
        (["benchmark", "--output"], "--output"),
        (["benchmark", "--preset"], "preset"),
        (["benchmark", "--dtype"], "dtype"),
        (["benchmark", "slate", "--output"], "--output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_is_taken_for_a_value(fastslots: Command, arguments: list[str], named: str) -> None:
    write_run(Path("run"), SCENES)
    result = fastslots(*arguments, "")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert named in line
    assert "; got ''" in line
    assert [path.name for path in Path().iterdir()] == ["run"]


NO_UTF8 = "a\udcff"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--output", NO_UTF8],
        ["train", "--resume", NO_UTF8],
        ["evaluate", NO_UTF8],
        ["reconstruct", "a.png", "--model", NO_UTF8],
        ["segment", "a.png", "--model", NO_UTF8],
        ["compare", "--output", NO_UTF8],
    ],
    ids=lambda value: value[0],
)
def test_a_folder_of_checkpoints_whose_name_is_no_utf8_is_refused(
    fastslots: Command, arguments: list[str]
) -> None:
    result = fastslots(*arguments)
    assert result.code == 2
    assert "must be a path in UTF-8; got 'a\\udcff': rename it" in result.err
    assert list(Path().iterdir()) == []


def test_other_paths_need_no_utf8(fastslots: Command, images: Path) -> None:
    write_run(Path("run"), SCENES)
    images = images.rename(NO_UTF8)
    image = (images / "00.png").rename(images / f"{NO_UTF8}.png")
    shown = fastslots("reconstruct", image, "--model", "run", "--output", images / "out.png")
    assert shown.code == 0, shown.err
    options = ("--data", images, "--device", "cpu", "--output", f"out{NO_UTF8}")
    assert fastslots("evaluate", "run", *options).code == 0
    trained = fastslots("train", "--data", images, "--output", "trained", "--steps", 1, *SMALL[:-4])
    assert trained.code == 0, trained.err
    assert fastslots("train", "--resume", "trained", "--steps", 2, "--device", "cpu").code == 0


def test_an_error_of_several_lines_is_cut_to_its_first(
    fastslots: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("it went wrong\nframe 1\nframe 2")

    monkeypatch.setattr("fastslots.cli.benchmark.run_benchmark", fail)
    result = fastslots("benchmark", "--device", "cpu")
    assert result.err == "fastslots: error: it went wrong (FASTSLOTS_DEBUG=1 shows more)\n"


def test_the_version_is_that_of_the_project(fastslots: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert package.__version__ == project["version"]
    result = fastslots("--version")
    assert (result.code, result.out) == (0, f"fastslots {project['version']}\n")


@pytest.mark.parametrize(
    "pyproject", [None, '[project]\nname = "another"\nversion = "7"', "[tool.x]"]
)
def test_the_version_of_an_installed_package_is_that_of_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pyproject: str | None
) -> None:
    if pyproject is not None:
        (tmp_path / "pyproject.toml").write_text(pyproject)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"2.0 of {name}")
    assert find_version(tmp_path) == "2.0 of fastslots"


def test_a_copy_that_is_not_installed_has_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert find_version(tmp_path) == "unknown"


def test_all_commands_are_listed() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    assert names | groups == {name.split()[0] for name in COMMANDS if name}
