import dataclasses
import json

import pytest
import torch

from fastslots.benchmark import Case, Results, markdown, plot_case, run_benchmark
from fastslots.benchmark.attention.providers import Provider
from fastslots.benchmark.attention.reports.speedups import growth, speedup_markdown, speedups
from fastslots.benchmark.attention.reports.speedups_plot import plot_speedups

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Both ms of a training step and of a forward, as a GPU might have them, by provider.
TRAINING = {
    "reference": 8.0,
    "reference + graph": 4.0,
    "reference + compile + graph": 3.0,
    "torch + compile + graph": 2.0,
    "triton": 1.5,
    "triton + graph": 1.0,
}


def gpu_rows(case="clevr-bf16", iterations=(1, 7, 127)):
    """Rows of a GPU: what was measured of a small case, with the numbers above in its place."""
    shape = Case(case, 2, 10, 8, 3, 8, 8, iterations=(1,))
    results = run_benchmark([shape], [Provider("torch", "implicit")], CPU, repeats=3)
    rows = []
    for count in iterations:
        for gradient in ("unrolled", "implicit", "no-grad"):
            for provider, ms in TRAINING.items():
                if gradient == "unrolled" and provider != "reference":
                    continue
                both = (
                    ms
                    * (3 if gradient == "unrolled" else 1)
                    * (0.5 if gradient == "no-grad" else 1)
                )
                row = dataclasses.replace(
                    results.rows[0],
                    provider=provider,
                    backend=provider.partition(" ")[0],
                    compiled="compile" in provider,
                    graphed="graph" in provider,
                    gradient=gradient,
                    iterations=count,
                    both_ms_p50=both,
                    backward_ms_p50=None if gradient == "no-grad" else both / 2 + count * 1e-4,
                    peak_bytes=None if "graph" in provider else int(1e6 * both),
                    forward_gb_s=1000.0 / ms,
                    copy_gb_s=2000.0,
                )
                rows.append(row)
    return dataclasses.replace(results, rows=rows)


def both(first, second):
    return dataclasses.replace(first, rows=[*first.rows, *second.rows])


def test_speed_ups_are_those_over_every_usual_form():
    found = {(s.row.gradient, s.row.iterations): s for s in speedups(gpu_rows())}
    assert len(found) == 6
    step, forward = found["implicit", 7], found["no-grad", 7]
    assert step.over == {
        "unrolled, eager": 24.0,
        "eager": 8.0,
        "graph": 4.0,
        "compiled": 3.0,
        "control": 2.0,
        "slot-attention": None,
    }
    assert step.memory == pytest.approx(24.0 / 1.5)
    assert (forward.over["unrolled, eager"], forward.over["eager"]) == (None, 8.0)
    assert (forward.memory, forward.row.share_of_copy) == (None, 0.5)


def test_growth_is_that_of_every_implicit_provider_from_1_to_127_iterations():
    found = {one.many.provider: one for one in growth(gpu_rows())}
    assert found.keys() == TRAINING.keys()
    assert found["triton"].peak == 1.0
    assert found["triton"].backward == pytest.approx((0.75 + 127e-4) / (0.75 + 1e-4))
    assert found["triton + graph"].peak is None
    assert growth(gpu_rows(iterations=(1, 7))) == []


def test_tables_show_speed_ups_and_growth():
    text = speedup_markdown(both(gpu_rows(), gpu_rows("flat-clevr-bf16", (1, 127))))
    row = "| clevr-bf16 | implicit | 7 | 1.00 | 24.00x | 8.00x | 4.00x | 3.00x | 2.00x | - | 16.00x | 50% |"
    assert row in text
    assert "| clevr-bf16 | implicit | 127 |" not in text
    assert "| flat-clevr-bf16 | triton | 1.017 | 1.000 |" in text
    assert "| clevr-bf16 | triton |" not in text
    assert "control: the projection-free form in plain PyTorch" in text
    assert "after 127 iterations divided by that after 1" in text


def test_plots_speed_ups_and_a_case(tmp_path):
    plot_speedups(both(gpu_rows("a"), gpu_rows("b")), tmp_path / "new" / "speed-ups.png")
    assert (tmp_path / "new" / "speed-ups.png").read_bytes().startswith(b"\x89PNG")
    plot_case(gpu_rows(), "clevr-bf16", tmp_path / "case.png")
    assert len((tmp_path / "case.png").read_bytes()) > 20_000


def test_a_plot_of_speed_ups_needs_rows_of_ours(tmp_path):
    rows = [row for row in gpu_rows().rows if row.backend != "triton"]
    results = dataclasses.replace(gpu_rows(), rows=rows)
    assert "| clevr-bf16" not in speedup_markdown(results)
    with pytest.raises(ValueError, match=r"results must hold rows of 'triton \+ graph'"):
        plot_speedups(results, tmp_path / "speed-ups.png")


def test_rows_of_the_first_schema_are_read(tmp_path):
    results = gpu_rows()
    path = tmp_path / "results.json"
    results.save(path)
    content = json.loads(path.read_text())
    for row in content["rows"]:
        for name in ("precision", "graphed", "check", "launches_per_iteration", "forward_gb_s"):
            del row[name]
        for name in ("copy_gb_s", "joules"):
            del row[name]
    path.write_text(json.dumps(content | {"schema": 1}))
    read = Results.load(path)
    assert [row.both_ms_p50 for row in read.rows] == [row.both_ms_p50 for row in results.rows]
    assert {(row.precision, row.check) for row in read.rows} == {("ieee", "float64 reference")}
    assert "GB/s" not in markdown(read)
