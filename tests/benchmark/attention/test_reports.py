"""Tables, plots, and blocks of READMEs."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.readme import filled
from fastslots.benchmark import (
    Skipped,
    markdown,
    plot_case,
    result_tables,
    run_benchmark,
)
from fastslots.benchmark.attention.reports.plot import spread_out
from fastslots.benchmark.tables import digits
from tests.benchmark.attention.cases import CPU, NO_GRAD, TINY

pytestmark = pytest.mark.slow


def test_tables_show_every_row_and_what_was_left_out(results):
    text = markdown(results)
    assert text.count("\n| torch |") == text.count("\n| reference |") == 6
    assert "| torch | implicit | 5 |" in text
    assert "- triton not measured: no GPU" in text
    assert "B 2, N 10, C 8, K 3, D 8, MLP 8, float32" in text
    assert torch.__version__ in text
    assert markdown(results, [5]).count("\n| torch |") == 2
    (table,) = result_tables(results)
    assert table.row_count == 12


def test_reasons_that_differ_in_iterations_alone_share_a_line(results):
    skipped = [Skipped("torch", "too slow", "tiny", "unrolled", n) for n in (31, 63)]
    text = markdown(dataclasses.replace(results, skipped=skipped))
    assert "- tiny, torch, unrolled, T = 31, 63 not measured: too slow" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (0.9996, "1.000"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_writes_about_three_digits(value, text):
    assert digits(value) == text


def test_a_table_has_the_columns_of_a_gpu_where_there_was_one():
    results = run_benchmark([TINY], NO_GRAD, CPU, repeats=3)
    assert "launches / T" not in markdown(results)
    rows = [
        dataclasses.replace(
            row, launches_per_iteration=3.0, forward_gb_s=1500.0, copy_gb_s=3000.0, joules=0.25
        )
        for row in results.rows
    ]
    text = markdown(dataclasses.replace(results, rows=rows))
    assert "| launches / T | forward GB/s | J |" in text
    assert "| 3.00 | 1500 (50%) | 0.250 |" in text
    assert "share of the bandwidth of a copy" in text


def test_plots_a_case(results, tmp_path):
    plot_case(results, "tiny", tmp_path / "plots" / "tiny.png")
    content = (tmp_path / "plots" / "tiny.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_plots_rows_without_memory(results, tmp_path):
    rows = [dataclasses.replace(row, kept_bytes=None, peak_bytes=None) for row in results.rows]
    plot_case(dataclasses.replace(results, rows=rows), "tiny", tmp_path / "tiny.png")
    assert (tmp_path / "tiny.png").exists()


def test_rejects_a_plot_of_an_unknown_case(results, tmp_path):
    with pytest.raises(ValueError, match=r"case must be one of \('tiny',\); got 'huge'"):
        plot_case(results, "huge", tmp_path / "huge.png")


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.5, 0.5, 0.62], [0.44, 0.54, 0.64]),
        ([0.0, 0.5, 0.5, 0.52], [0.0, 0.40667, 0.50667, 0.60667]),
    ],
)
def test_labels_keep_apart_around_their_lines(heights, expected):
    assert spread_out(heights, 0.1) == pytest.approx(expected, abs=1e-4)


def test_fills_the_blocks_of_the_readme(results, tmp_path):
    results.save(tmp_path / "cpu.json")
    readme = "# Title\n<!-- benchmark:cpu iterations=1,2,5 -->\nold\n<!-- /benchmark -->\nend\n"
    once = filled(readme, tmp_path, draw=True)
    assert once.startswith("# Title\n<!-- benchmark:cpu iterations=1,2,5 -->\n\n![")
    assert once.endswith("\n<!-- /benchmark -->\nend\n")
    assert "old" not in once
    assert once.count("\n| torch |") == 6
    assert (tmp_path / "tiny.png").exists()
    assert filled(once, tmp_path, draw=False) == once


def test_a_block_with_few_counts_has_their_rows_and_no_plot(results, tmp_path):
    results.save(tmp_path / "cpu.json")
    readme = "<!-- benchmark:cpu iterations=5 -->\n<!-- /benchmark -->\n"
    filled_once = filled(readme, tmp_path, draw=True)
    assert filled_once.count("\n| torch |") == 2
    assert "![" not in filled_once
    assert not (tmp_path / "tiny.png").exists()


def test_refuses_a_readme_with_a_block_left_open(tmp_path):
    with pytest.raises(ValueError, match=r"README must have a <!-- /benchmark --> for every"):
        filled("<!-- benchmark:cpu -->\n", tmp_path, draw=False)


@pytest.mark.parametrize("name", ["README.md", "kernels/README.md"])
def test_readme_is_up_to_date(name):
    root = Path(__file__).parents[3]
    readme = (root / name).read_text()
    assert filled(readme, root / "benchmarks" / "results", draw=False) == readme
