import dataclasses

import pytest

from fastslots.benchmark import (
    Provider,
    Results,
    markdown,
    run_benchmark,
)
from fastslots.benchmark.attention import cases, providers
from fastslots.benchmark.attention.check import BY_ORACLE
from fastslots.benchmark.measure.bandwidth import gb_s
from tests.benchmark.attention.cases import CPU, NO_GRAD, TINY

pytestmark = pytest.mark.slow


def test_rows_hold_times_bytes_and_shape(results):
    assert len(results.rows) == 12
    assert {(row.backend, row.gradient, row.iterations) for row in results.rows} == {
        (backend, gradient, iterations)
        for backend in ("reference", "torch")
        for gradient in ("unrolled", "implicit")
        for iterations in (1, 2, 5)
    }
    for row in results.rows:
        assert 0 < row.both_ms_p20 <= row.both_ms_p50 <= row.both_ms_p80
        assert row.both_ms_p50 >= max(row.forward_ms_p20, row.backward_ms_p20)
        assert 0 < row.kept_bytes < row.peak_bytes
        assert (row.batch, row.num_inputs, row.rounds) == (2, 10, 3)
        assert row.input_bytes == 2 * 10 * 8 * 4
        assert row.speedup == 1 if row.backend == "reference" else row.speedup > 0


def test_results_survive_their_file(results, tmp_path):
    results.save(tmp_path / "new" / "results.json")
    assert Results.load(tmp_path / "new" / "results.json") == results


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 0}', '{"schema": 1, "environment": {}, "rows": []}']
)
def test_refuses_a_file_that_holds_no_results(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no results file of fastslots"):
        Results.load(tmp_path / "other.json")


def test_a_file_in_place_of_the_folder_is_an_os_error(results, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        results.save(tmp_path / "file" / "results.json")


def test_forwards_alone_have_no_backward():
    results = run_benchmark([TINY], NO_GRAD, CPU, repeats=3)
    assert len(results.rows) == 4
    for row in results.rows:
        assert row.backward_ms_p50 is row.backward_ms_p80 is None
        assert row.both_ms_p50 == row.forward_ms_p50 > 0
        assert row.speedup == 1 if row.backend == "reference" else row.speedup > 0
    assert "| torch | no-grad | 2 |" in markdown(results)
    assert "no-grad: T iterations without a graph" in markdown(results)


@pytest.mark.parametrize("precision", cases.PRECISIONS)
@pytest.mark.parametrize("gradient", providers.MODES)
def test_rows_name_their_precision_and_right_results_pass(precision, gradient):
    case = dataclasses.replace(TINY, precision=precision)
    results = run_benchmark([case], [Provider("torch", gradient)], CPU, repeats=3)
    assert {row.precision for row in results.rows} == {precision}
    assert {row.check for row in results.rows} == {BY_ORACLE}
    words = {
        "ieee": "float32**",
        "tf32": "float32, tf32 products",
        "bf16": "float32, bf16 autocast",
    }
    assert words[precision] in markdown(results)


def test_counts_the_bytes_that_a_forward_must_read():
    """float32 inputs in every step; with bfloat16 products normalised once where steps are many."""
    elements = 2 * 10 * 8
    case = dataclasses.replace(TINY, precision="bf16")
    assert Provider("torch", "no-grad").least_bytes(TINY, 3) == elements * 4 * 3
    assert Provider("torch", "no-grad").least_bytes(case, 1) == elements * 4
    assert Provider("torch", "implicit").least_bytes(case, 3) == elements * (4 + 2 * 4)
    assert gb_s(3_000_000, 1.5) == 2.0
    (row, *_) = run_benchmark([TINY], NO_GRAD[:1], CPU, repeats=3).rows
    assert row.forward_gb_s == pytest.approx(elements * 4 / row.forward_ms_p50 / 1e6)
