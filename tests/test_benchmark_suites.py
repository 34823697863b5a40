import dataclasses
import json

import pytest
import torch

from benchmarks.readme import filled
from fastslots.benchmark import (
    PARTS,
    Case,
    Results,
    choose_parts,
    growth,
    is_measured,
    markdown,
    merged,
    plot_case,
    plot_speedups,
    run_benchmark,
    speedup_markdown,
    speedups,
    suites,
)
from fastslots.benchmark.providers import Provider

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
    assert (forward.memory, forward.share_of_copy) == (None, 0.5)


def test_growth_is_that_of_every_implicit_provider_from_1_to_127_iterations():
    found = {one.many.provider: one for one in growth(gpu_rows())}
    assert found.keys() == TRAINING.keys()
    assert found["triton"].peak == 1.0
    assert found["triton"].backward == pytest.approx((0.75 + 127e-4) / (0.75 + 1e-4))
    assert found["triton + graph"].peak is None
    assert growth(gpu_rows(iterations=(1, 7))) == []


def test_tables_of_a_suite_show_speed_ups_and_growth():
    text = speedup_markdown(merged([gpu_rows(), gpu_rows("flat-clevr-bf16", (1, 127))]))
    row = "| clevr-bf16 | implicit | 7 | 1.00 | 24.00x | 8.00x | 4.00x | 3.00x | 2.00x | - | 16.00x | 50% |"
    assert row in text
    assert "| clevr-bf16 | implicit | 127 |" not in text
    assert "| flat-clevr-bf16 | triton | 1.017 | 1.000 |" in text
    assert "| clevr-bf16 | triton |" not in text
    assert "control: the projection-free form in plain PyTorch" in text
    assert "after 127 iterations divided by that after 1" in text


def test_results_of_one_device_and_commit_are_merged():
    first, second = gpu_rows("a"), gpu_rows("b")
    assert list(merged([first, second]).cases()) == ["a", "b"]
    other = dataclasses.replace(second, environment={**second.environment, "device": "another"})
    with pytest.raises(ValueError, match="parts must be of one device and commit"):
        merged([first, other])
    with pytest.raises(ValueError, match="parts must be of one device and commit"):
        merged([])


def test_plots_a_suite(tmp_path):
    plot_speedups(merged([gpu_rows("a"), gpu_rows("b")]), tmp_path / "new" / "speed-ups.png")
    assert (tmp_path / "new" / "speed-ups.png").read_bytes().startswith(b"\x89PNG")
    plot_case(gpu_rows(), "clevr-bf16", tmp_path / "case.png")
    assert len((tmp_path / "case.png").read_bytes()) > 20_000


def test_a_plot_of_speed_ups_needs_rows_of_ours(tmp_path):
    rows = [row for row in gpu_rows().rows if row.backend != "triton"]
    results = dataclasses.replace(gpu_rows(), rows=rows)
    assert "| clevr-bf16" not in speedup_markdown(results)
    with pytest.raises(ValueError, match=r"results must hold rows of 'triton \+ graph'"):
        plot_speedups(results, tmp_path / "speed-ups.png")


def test_fills_the_blocks_of_a_suite(tmp_path):
    for name in ("a", "b"):
        gpu_rows(name).save(tmp_path / "h200" / f"{name}.json")
    readme = (
        "<!-- speed-ups:h200 iterations=7 -->\n<!-- /speed-ups -->\n"
        "<!-- benchmark:h200/a -->\n<!-- /benchmark -->\n"
    )
    once = filled(readme, tmp_path, draw=True)
    assert "(benchmarks/results/h200/speed-ups.png)" in once
    assert "(benchmarks/results/h200/a.png)" in once
    assert (
        once.count("| a | implicit | 7 | 1.00 |") == once.count("| b | implicit | 7 | 1.00 |") == 1
    )
    assert (tmp_path / "h200" / "speed-ups.png").exists()
    assert (tmp_path / "h200" / "a.png").exists()
    assert filled(once, tmp_path, draw=False) == once


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


def test_the_core_suite_is_slate128_and_clevr():
    core = choose_parts()
    assert {part.suite for part in core} == {"core"}
    assert {(part.case.batch, part.case.num_inputs, part.case.num_slots) for part in core} == {
        (50, 1024, 12),
        (64, 16_384, 11),
    }
    compiled = {count for part in core for count in part.case.focus or ()}
    assert compiled == {3, 7}
    assert choose_parts(["core", "rest"]) == list(PARTS.values())
    assert [part.name for part in choose_parts(["long-bf16"])] == ["long-bf16"]


def test_all_parts_together_are_all_shapes_and_precisions():
    assert {part.case.precision for part in PARTS.values()} == {"ieee", "tf32", "bf16"}
    for precision in ("ieee", "tf32", "bf16"):
        named = {name.removesuffix(f"-{precision}") for name in PARTS if name.endswith(precision)}
        assert {*suites.CORE, *suites.REST} <= named
    assert all(part.case.name == name == part.name for name, part in PARTS.items())
    assert PARTS["long-tf32"].case.iterations[-1] == 127


def test_compiled_forms_in_tf32_are_measured_with_the_rest():
    compiled = {
        name
        for name, part in PARTS.items()
        if name.startswith(("slate128", "clevr")) and any(p.compiled for p in part.providers)
    }
    assert {name for name in compiled if PARTS[name].suite == "core"} == {
        "slate128-bf16",
        "clevr-bf16",
    }
    assert {"slate128-tf32-compiled", "clevr-tf32-compiled"} < compiled
    assert Provider("triton", "implicit", graphed=True) in PARTS["clevr-tf32-compiled"].providers


def test_rejects_a_part_that_there_is_not():
    with pytest.raises(ValueError, match=r"parts must be of .*; got \['huge'\]"):
        choose_parts(["core", "huge"])


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_a_tiny_form(name):
    part = PARTS[name].tiny()
    assert part.case.batch * part.case.num_inputs < 100
    assert part.case.iterations in ((1, 2), (2, 2))
    assert (part.case.precision, part.providers) == (
        PARTS[name].case.precision,
        PARTS[name].providers,
    )


def test_a_tiny_part_is_measured_and_names_its_commit(tmp_path):
    part = PARTS["flat-clevr-bf16"].tiny()
    results = part.measure(CPU, commit="abc")
    assert {row.provider for row in results.rows} == {"reference"}
    assert {entry.provider for entry in results.skipped} == {"triton", "triton + graph"}
    assert (results.environment["commit"], results.environment["dirty"]) == ("abc", False)
    path = tmp_path / "part.json"
    assert not is_measured(path, "abc", results.environment["device"])
    results.save(path)
    device = results.environment["device"]
    assert is_measured(path, "abc", device)
    assert not is_measured(path, "abc", "another device")
    assert not is_measured(path, "def", device)
    assert not is_measured(path, None, device)
