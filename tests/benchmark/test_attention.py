import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fastslots
from benchmarks.readme import filled
from fastslots.benchmark import (
    Call,
    Case,
    Problem,
    Provider,
    Results,
    check_call,
    choose_providers,
    constant_memory_table,
    describe_environment,
    markdown,
    measure_constant_memory,
    memory_use,
    plot_case,
    preset,
    result_tables,
    run_benchmark,
)
from fastslots.benchmark.attention import calls, cases, prepare, providers
from fastslots.benchmark.attention.reports.plot import spread_out
from fastslots.benchmark.attention.reports.tables import digits
from fastslots.benchmark.measure import timing
from fastslots.benchmark.measure.compile_budget import CompileBudget
from fastslots.benchmark.measure.timing import time_in_turns
from fastslots_kernels.backends import ResolvedBackend

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = Case("tiny", 2, 10, 8, 3, 8, 8, iterations=(1, 2))
REFERENCE, TORCH = (Provider(backend, "implicit") for backend in ("reference", "torch"))


@pytest.fixture(scope="module")
def results():
    providers = [REFERENCE, TORCH, Provider("reference", "unrolled"), Provider("torch", "unrolled")]
    case = dataclasses.replace(TINY, iterations=(1, 2, 5))
    skipped = [cases.Skipped("triton", "no GPU")]
    return run_benchmark([case], providers, CPU, skipped=skipped, repeats=3)


def memory(backend, gradient, iterations, case=TINY):
    call = Call(Provider(backend, gradient), Problem.make(case, CPU), iterations)
    call.run()
    return memory_use(call.forward, call.backward, CPU)


def test_counts_the_bytes_of_a_hand_made_case():
    def forward():
        kept = torch.empty(1000)
        torch.empty(500, dtype=torch.float64)
        return kept

    def backward(kept):
        assert kept.numel() == 1000
        first = torch.empty(2000)
        del first
        torch.empty(3000)

    assert memory_use(forward, backward, CPU) == (4000, 16_000)
    assert memory_use(lambda: None, lambda _: torch.empty(10), CPU) == (0, 40)


def test_counts_what_autograd_saves():
    x = torch.zeros(1000, requires_grad=True)
    grad = torch.ones(1000)
    kept, peak = memory_use(lambda: x.exp().exp(), lambda y: torch.autograd.grad(y, x, grad), CPU)
    assert kept == 8000
    assert peak >= 16_000


def test_what_an_earlier_measurement_left_behind_does_not_count():
    left, older = [], []

    def leave():
        left.extend(torch.empty(100_000) for _ in range(20))

    assert memory_use(leave, lambda _: None, CPU) == (8_000_000, 8_000_000)
    known = {block.data_ptr() for block in left}
    left.clear()
    blocks = [torch.empty(100_000) for _ in range(20)]
    older += [block for block in blocks if block.data_ptr() in known]
    assert older, "the allocator gave no address twice: nothing is tested"
    del blocks
    assert memory_use(older.clear, lambda _: torch.empty(1000), CPU) == (0, 4000)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_implicit_gradients_keep_the_same_bytes_after_any_number_of_iterations(backend):
    assert memory(backend, "implicit", 1) == memory(backend, "implicit", 9)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_every_unrolled_iteration_keeps_as_many_bytes_again(backend):
    kept = [memory(backend, "unrolled", iterations).kept_bytes for iterations in (2, 3, 4)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


def test_torch_backend_keeps_at_most_a_fifth_of_the_inputs():
    case = next(case for case in preset("cpu-targets") if case.name == "tokens-1024")
    few, many = (memory("torch", "implicit", iterations, case).kept_bytes for iterations in (1, 64))
    assert few == many <= 0.2 * case.input_bytes
    assert memory("reference", "implicit", 1, case).kept_bytes > case.input_bytes


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_right_results_pass_the_check(dtype, gradient):
    problem = Problem.make(dataclasses.replace(TINY, dtype=dtype), CPU)
    check_call(Call(Provider("torch", gradient), problem, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wrong", ["slots", "attn"])
def test_a_provider_with_wrong_results_is_left_out_and_the_others_are_timed(
    monkeypatch, dtype, wrong
):
    def perturbed(slots, attn):
        return (slots * 1.001, attn) if wrong == "slots" else (slots, attn + 1e-3)

    measured = measured_with(monkeypatch, perturbed, dtype)
    assert {row.provider for row in measured.rows} == {"reference"}
    (entry,) = measured.wrong
    assert re.match(rf"torch \(implicit, 1 iterations, .*{wrong}.*at most", entry.reason)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_that_is_off_is_recorded_and_the_provider_timed(monkeypatch, dtype):
    """Rounding may switch a hidden unit of the MLP: the time is as good as any."""

    def perturbed(slots, attn):
        slots.register_hook(lambda grad: grad * 1.001)
        return slots, attn

    measured = measured_with(monkeypatch, perturbed, dtype)
    assert not measured.wrong
    errors = {row.provider: row.gradient_error for row in measured.rows}
    assert errors["reference"] <= 1 < errors["torch"]
    (note,) = [line for line in markdown(measured).splitlines() if "gradient is off" in line]
    assert re.match(r"- tiny, torch, implicit, T = 1: a gradient is off by \d+.* times", note)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_provider_with_a_gradient_that_is_not_finite_is_left_out(monkeypatch, bad):
    def perturbed(slots, attn):
        slots.register_hook(lambda grad: grad * bad)
        return slots, attn

    measured = measured_with(monkeypatch, perturbed, "float32")
    assert {row.provider for row in measured.rows} == {"reference"}
    (entry,) = measured.wrong
    assert re.match(r"torch \(implicit, .*gradient of \w+ is not finite", entry.reason)


def measured_with(monkeypatch, perturbed, dtype):
    """Results where slots and attention of backend torch are perturbed, at 1 iteration."""
    right = calls.slot_attention

    def wrong(*args, backend, **options):
        slots, attn, used = right(*args, backend=backend, **options)
        return (*perturbed(slots, attn), used) if backend == "torch" else (slots, attn, used)

    monkeypatch.setattr(calls, "slot_attention", wrong)
    case = dataclasses.replace(TINY, dtype=dtype, iterations=(1,))
    return run_benchmark([case], [TORCH, REFERENCE], CPU, repeats=3)


class FakeCall:
    device = CPU

    def __init__(self, name, log):
        self.name, self.log = name, log

    def forward(self):
        self.log.append(self.name)

    def backward(self, outputs):
        pass


def test_takes_turns_in_both_directions():
    log = []
    times = time_in_turns([FakeCall(name, log) for name in "abc"], 4, 60)
    assert "".join(log) == "abccbaabccba"
    assert [len(series) for series in times] == [4, 4, 4]


def test_stops_after_three_rounds_when_the_time_is_up():
    log = []
    time_in_turns([FakeCall("a", log)], 100, 0)
    assert log == ["a"] * 3


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


def no_triton(backend):
    if backend == "triton":
        raise RuntimeError("backend 'triton' cannot run: no GPU")
    return ResolvedBackend(backend, "asked for by name")


def test_lists_a_backend_that_cannot_run_with_its_reason(monkeypatch):
    monkeypatch.setattr(providers, "resolve_backend", no_triton)
    chosen, skipped = choose_providers(CPU, compiled=False)
    assert [p.backend for p in chosen] == ["reference", "reference", "torch", "torch"]
    assert [(s.provider, s.reason) for s in skipped] == [
        ("triton", "backend 'triton' cannot run: no GPU")
    ]


def test_a_backend_asked_for_by_name_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setattr(providers, "resolve_backend", no_triton)
    with pytest.raises(RuntimeError, match="no GPU"):
        choose_providers(CPU, ["triton"])


def test_interpreted_kernels_are_not_measured(monkeypatch):
    monkeypatch.setattr(
        providers, "resolve_backend", lambda name: ResolvedBackend(name, "interpreter")
    )
    with pytest.raises(RuntimeError, match="'triton' cannot be measured on a CPU"):
        choose_providers(CPU, ["triton"])
    assert [s.provider for s in choose_providers(CPU)[1]] == ["triton"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backends": ["jax"]}, r"backend must be one or more of .*; got \['jax'\]"),
        ({"backends": []}, r"backend must be one or more of .*; got \[\]"),
        ({"gradients": ["neumann"]}, r"gradient must be one or more of .*; got \['neumann'\]"),
    ],
)
def test_rejects_unknown_providers(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_providers(CPU, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of .*; got 'int8'"),
        ({"batch": 0}, "batch must be at least 1; got 0"),
        ({"num_inputs": 1.5}, "num_inputs must be an int; got 1.5"),
        ({"num_heads": 3}, "slot_size must be a multiple of num_heads 3; got 8"),
        ({"iterations": ()}, "iterations must be at least one number; got none"),
        ({"iterations": (3, 0)}, "iterations must be at least 1; got 0"),
        ({"iterations": (True,)}, "iterations must be an int; got True"),
    ],
)
def test_rejects_a_case_that_breaks_a_rule(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dataclasses.replace(TINY, **change)


def test_rejects_an_unknown_preset():
    with pytest.raises(ValueError, match=r"preset must be one of .*; got 'huge'"):
        preset("huge")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 2}, "repeats must be at least 3; got 2"),
        ({"time_limit_s": -1}, "time_limit_s must be at least 0; got -1"),
        ({"compile_limit_s": float("nan")}, "compile_limit_s must be at least 0; got nan"),
    ],
)
def test_rejects_limits_that_break_a_rule(options, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark([TINY], [TORCH], CPU, **options)


def test_what_cannot_be_compiled_is_left_out_with_its_reason(monkeypatch):
    def fail():
        raise RuntimeError("no working C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    compiled = Provider("reference", "implicit", compiled=True)
    measured = run_benchmark([TINY], [TORCH, compiled], CPU, repeats=3)
    assert {row.provider for row in measured.rows} == {"torch"}
    assert [(s.provider, s.iterations, s.reason) for s in measured.skipped] == [
        ("reference + compile", n, "torch.compile failed: no working C++ compiler") for n in (1, 2)
    ]


def test_nothing_is_compiled_beyond_the_limit():
    compiled = Provider("reference", "implicit", compiled=True)
    measured = run_benchmark([TINY], [compiled], CPU, compile_limit_s=0)
    assert not measured.rows
    assert [s.reason for s in measured.skipped] == [
        "torch.compile would take longer than the limit, 0 s"
    ] * 2


def test_compiles_a_graph_for_every_number_of_iterations(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compile_(function, backend="eager", **options),
    )
    compiled = Provider("reference", "implicit", compiled=True)
    with torch._dynamo.config.patch(recompile_limit=1):  # the default is 8: this is faster
        case = dataclasses.replace(TINY, iterations=(1, 2, 3))
        measured = run_benchmark([case], [compiled], CPU, repeats=3)
    assert not measured.skipped
    assert [row.iterations for row in measured.rows] == [1, 2, 3]
    assert all(row.compiled and row.speedup is None for row in measured.rows)


def test_what_does_not_fit_the_gpu_is_left_out_with_its_reason(monkeypatch):
    run = Call.run

    def run_small(call):
        if call.iterations == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return run(call)

    monkeypatch.setattr(Call, "run", run_small)
    measured = run_benchmark([TINY], [TORCH], CPU, repeats=3)
    assert [row.iterations for row in measured.rows] == [1]
    assert [(s.iterations, s.reason) for s in measured.skipped] == [
        (2, "out of memory: CUDA out of memory. Tried to allocate 2 GiB")
    ]


@pytest.mark.parametrize("when", ["check_call", "memory_use", "_times"])
def test_what_runs_out_of_memory_later_leaves_the_others(monkeypatch, when):
    where = {"check_call": prepare, "memory_use": prepare, "_times": timing}[when]
    right = getattr(where, when)

    def run_out(first, *others):
        call = getattr(first, "__self__", first)
        if call.provider == TORCH and call.iterations == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(first, *others)

    monkeypatch.setattr(where, when, run_out)
    measured = run_benchmark([TINY], [REFERENCE, TORCH], CPU, repeats=3)
    left = {(row.provider, row.iterations) for row in measured.rows} - {("torch", 1)}
    assert left == {("reference", 1), ("reference", 2)}
    assert {s.provider for s in measured.skipped} == {"torch"}
    assert not measured.wrong
    assert "out of memory" in measured.skipped[0].reason


def test_on_cuda_the_limit_alone_ends_compiling():
    budgets = [CompileBudget(10, predicts=predicts) for predicts in (True, False)]
    for budget in budgets:
        budget.spend(100)  # loads the compiler
        budget.spend(6)
    assert [budget.allows() for budget in budgets] == [False, True]
    budgets[1].spend(6)
    assert not budgets[1].allows()


def test_errors_of_eager_providers_are_not_hidden(monkeypatch):
    def fail(call):
        raise RuntimeError("broken")

    monkeypatch.setattr(Call, "run", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run_benchmark([TINY], [TORCH], CPU)


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
    skipped = [cases.Skipped("torch", "too slow", "tiny", "unrolled", n) for n in (31, 63)]
    text = markdown(dataclasses.replace(results, skipped=skipped))
    assert "- tiny, torch, unrolled, T = 31, 63 not measured: too slow" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (0.9996, "1.000"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_writes_about_three_digits(value, text):
    assert digits(value) == text


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


def test_constant_memory_table_shows_growth_for_unrolled_alone():
    measured = measure_constant_memory(CPU, TINY, time_limit_s=0)
    kept = {(row.backend, row.gradient, row.iterations): row.kept_bytes for row in measured.rows}
    assert kept["torch", "implicit", 1] == kept["torch", "implicit", 2]
    assert kept["reference", "unrolled", 1] < kept["reference", "unrolled", 2]
    table = constant_memory_table(measured)
    assert table.row_count == 4
    assert [str(column.header) for column in table.columns] == [
        "gradient",
        "backend",
        "kept MiB\nT = 1",
        "kept MiB\nT = 2",
        "backward ms\nT = 1",
        "backward ms\nT = 2",
    ]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's place in a checkout."""
    folder = tmp_path / "fastslots"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.setattr(fastslots, "__file__", str(folder / "__init__.py"))
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_names_the_commit_and_whether_the_sources_differ_from_it(package):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=package.parent, check=True, capture_output=True
        )

    git("init")
    assert describe_environment(CPU)["commit"] is None  # inside a checkout that does not track it
    git("add", ".")
    git("commit", "-m", "first")
    env = describe_environment(CPU)
    assert len(env["commit"]) == 40
    assert env["dirty"] is False
    (package / "new.py").touch()
    assert describe_environment(CPU)["dirty"] is True


def test_names_no_commit_outside_a_checkout(package):
    env = describe_environment(CPU)
    assert (env["commit"], env["dirty"]) == (None, None)
    assert env["torch"] == torch.__version__
    assert env["threads"] == torch.get_num_threads()
    assert env["device"] == env["cpu"] != ""


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
    root = Path(__file__).parents[2]
    readme = (root / name).read_text()
    assert filled(readme, root / "benchmarks" / "results", draw=False) == readme
