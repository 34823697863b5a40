"""Results on terminals of any width."""

from __future__ import annotations

import re

import pytest
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastslots.cli.evaluate import _show
from fastslots.cli.tables import show_results
from fastslots.evaluation import Evaluation

METRICS = [
    "cross_entropy_nats_per_image",
    "dvae_squared_error_per_value",
    "slots_squared_error_per_image",
    "slots_used_per_image",
    "fg_ari",
    "ari",
    "mean_best_overlap",
]


@pytest.fixture(params=[60, 80])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes what it prints to for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def lines(out: str, width: int) -> list[str]:
    """What was printed, whole."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert "…" not in out
    assert max(map(len, plain)) <= width
    return plain


def table(values: int, rows: int = 2) -> Table:
    made = Table(title="a title", box=SIMPLE_HEAD)
    for name in ("backend", "gradient"):
        made.add_column(name)
    for number in range(values):
        made.add_column(f"value number {number}", justify="right")
    for row in range(rows):
        made.add_row(f"provider {row}", "unrolled", *(f"{row}.{n}" for n in range(values)))
    return made


@pytest.mark.usefixtures("terminal")
def test_a_table_wider_than_the_terminal_is_shown_in_pieces(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    show_results("markdown", [table(values=9)], ["a line that is " + 20 * "rather long "])
    out = capsys.readouterr().out
    shown = lines(out, width)
    heads = [line for line in shown if "backend" in line]
    assert (
        len(heads) == out.count("a title") == out.count("provider 1 ") == (5 if width == 60 else 3)
    )
    assert " ".join(heads).count("gradient") == len(heads)
    assert all(f"value number {number}" in " ".join(heads) for number in range(9))
    assert all(f" {row}.{number} " in out for row in range(2) for number in range(9))


@pytest.mark.usefixtures("terminal")
def test_a_table_that_fits_stays_whole(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    show_results("markdown", [table(values=1)], [])
    assert lines(capsys.readouterr().out, width)[0].strip() == "a title"


def test_a_pipe_gets_markdown(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    show_results("| mark | down |", [table(values=9)], ["a line"])
    assert capsys.readouterr().out == "| mark | down |\n"


@pytest.mark.parametrize("masks", [True, False])
def test_an_evaluation_is_shown_with_whole_names(
    width: int, masks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = METRICS if masks else METRICS[:4]
    scores = {name: torch.rand(100_000, dtype=torch.float64) - 0.5 for name in measured}
    scores["slots_used_per_image"] = -1.23456e-5 + 1e-8 * scores["slots_used_per_image"]
    missing = dict.fromkeys([] if masks else METRICS[4:], "the images have no masks")
    overall = {"unigram_entropy_nats_per_image": 1.23456e7}
    found = Evaluation(scores, overall, 0, missing, "slots_squared_error_per_image")
    _show(found, "step 250000", "test")
    out = capsys.readouterr().out
    shown = [line.split()[0] for line in lines(out[: out.index("slots_used")], width)]
    assert shown[3:] == ["unigram_entropy_nats_per_image", *measured[:3]]
    assert "-1.2346e-05" in out
    assert "100000" in out
    if not masks:
        said = "not measured: fg_ari, ari, mean_best_overlap (the images have no masks)"
        assert said in out
