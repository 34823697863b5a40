"""Rows, their file, tables, plots, and blocks of READMEs."""

import dataclasses

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.readme import filled
from fastslots.benchmark import (
    Results,
    Skipped,
    StepResults,
    plot_steps,
    step_markdown,
    step_tables,
)
from fastslots.benchmark.step.plot import draw_panel
from fastslots.benchmark.step.step import PartTimes
from tests.benchmark.step.cases import EAGER

pytestmark = pytest.mark.slow


def test_rows_hold_times_bytes_and_sizes(results):
    assert [(row.case, row.provider, row.gradient) for row in results.rows] == [
        (f"{size}px-v40", provider.label, provider.gradient)
        for size in (16, 24)
        for provider in EAGER
    ]
    for row in results.rows:
        assert 0 < row.step_ms_p20 <= row.step_ms_p50 <= row.step_ms_p80
        assert row.images_per_s == pytest.approx(2000 / row.step_ms_p50)
        assert min(row.forward_ms, row.backward_ms, row.update_ms) > 0
        assert all(getattr(row, part) > 0 for part in PartTimes._fields)
        assert 0 < row.kept_bytes < row.peak_bytes
        assert (row.batch_size, row.num_slots, row.dropout, row.rounds) == (2, 3, 0.1, 3)


def test_compares_with_the_eager_public_form_of_the_same_case(results):
    for rows in results.cases().values():
        public = rows[0]
        assert (public.speedup, public.peak_ratio) == (1, 1)
        for row in rows[1:]:
            assert row.peak_ratio == row.peak_bytes / public.peak_bytes
            assert row.speedup > 0


def test_results_survive_their_file_and_are_not_those_of_slot_attention(results, tmp_path):
    path = tmp_path / "steps.json"
    results.save(path)
    assert StepResults.load(path) == results
    with pytest.raises(ValueError, match=r"steps\.json is no results file of fastslots"):
        Results.load(path)


def test_tables_show_every_row_and_what_was_left_out(results):
    skipped = [Skipped("public + compile", "too slow", "16px-v40", "unrolled")]
    text = step_markdown(dataclasses.replace(results, skipped=skipped))
    assert "**16 pixels, V 40, B 2: 1 blocks, d 16, K 3, T 2, float32**" in text
    assert text.count("\n| fastslots | implicit |") == 4  # two cases: steps, and parts
    assert text.count("\n| public | unrolled |") == 4
    assert "- 16px-v40, public + compile, unrolled not measured: too slow" in text
    assert torch.__version__ in text
    assert [table.row_count for table in step_tables(results)] == [3] * 4


def test_tables_show_dashes_for_what_is_not_known(results):
    unknown = dataclasses.replace(
        results.rows[0],
        compiled=True,
        kept_bytes=None,
        peak_bytes=None,
        speedup=None,
        peak_ratio=None,
    )
    text = step_markdown(dataclasses.replace(results, rows=[unknown]))
    assert "| - | - | - | - |\n" in text
    assert "eager forward" not in text


def test_plots_rows_with_and_without_memory(results, tmp_path):
    rows = [*results.rows[:2], dataclasses.replace(results.rows[2], peak_bytes=None)]
    plot_steps(dataclasses.replace(results, rows=rows), tmp_path / "plots" / "steps.png")
    content = (tmp_path / "plots" / "steps.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_plot_says_where_nothing_was_counted(results):
    axes = Figure().subplots()
    rows = [results.rows[0], dataclasses.replace(results.rows[1], peak_bytes=None)]
    case = dataclasses.replace(results, rows=rows).cases()
    draw_panel(axes, case, "peak_bytes", 1.0)
    assert [text.get_text() for text in axes.texts].count(" not counted") == 1
    assert axes.get_xlim() == (-0.5, len(case) - 0.5)


def test_refuses_to_plot_nothing(results, tmp_path):
    with pytest.raises(ValueError, match="results must hold at least one row; got none"):
        plot_steps(dataclasses.replace(results, rows=[]), tmp_path / "steps.png")


def test_fills_the_blocks_of_the_readme(results, tmp_path):
    results.save(tmp_path / "cpu.json")
    readme = "# Title\n<!-- slate-steps:cpu -->\nold\n<!-- /slate-steps -->\nend\n"
    once = filled(readme, tmp_path, draw=True)
    start = "# Title\n<!-- slate-steps:cpu -->\n\n![Images per second"
    assert once.startswith(start)
    assert "](benchmarks/results/cpu.png)\n" in once
    assert once.endswith("\n<!-- /slate-steps -->\nend\n")
    assert "old" not in once
    assert once.count("\n| fastslots | implicit |") == 4
    assert (tmp_path / "cpu.png").exists()
    assert filled(once, tmp_path, draw=False) == once


@pytest.mark.parametrize("end", ["", "<!-- /benchmark -->"])
def test_refuses_a_readme_with_a_block_left_open(tmp_path, end):
    with pytest.raises(ValueError, match=r"README must have a <!-- /\S+ --> for every"):
        filled(f"<!-- slate-steps:cpu -->\n{end}\n", tmp_path, draw=False)
